/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Time. The TSC is read everywhere and calibrated once, against the ACPI PM timer where the
 * firmware names one, else against PIT channel 2. Where neither works it counts as the fastest TSC
 * there is: then everything takes longer than asked, and nothing is skipped. No loop here or
 * elsewhere ends by another clock than the TSC.
 *
 * A sample begins with the TSC before the other clock and ends with it after: what gets in between
 * (SMIs, a host that was busy elsewhere) makes the TSC seem faster, and waits longer. The median of
 * five is taken, so that two wrong readings of a timer do not count.
 */
#include "purgatory.h"

#define SAMPLES 5
#define SAMPLE_LIMIT (1ull << 31)	/* cycles; 0.36 s of the fastest TSC, for 10 ms */
#define KHZ_LEAST 100000
#define KHZ_MOST 6000000

#define PM_HZ 3579545ull
#define PM_MASK 0xffffff		/* 24 bits count on every implementation */
#define PM_TICKS 35796			/* 10 ms */

#define PIT_HZ 1193182ull
#define PIT_COUNT 11932			/* 10 ms */
#define PIT_CHANNEL2 0x42
#define PIT_COMMAND 0x43
#define PIT_CHANNEL2_MODE0 0xb0		/* both bytes, binary, the output rises at the end */
#define PIT_CONTROL 0x61
#define PIT_GATE 0x01
#define PIT_SPEAKER 0x02
#define PIT_OUTPUT 0x20

static u32 tsc_khz;
static const char *calibrated_by;

/* What the TSC gains in 10 ms of the PM timer, in kHz; 0 when that does not move, or crawls. */
static u32 pm_sample(void)
{
	u64 begin = cycles(), passed;
	u32 first = in32(handover.pm_port), ticks;

	do {
		relax();
		ticks = (in32(handover.pm_port) - first) & PM_MASK;
		passed = cycles() - begin;
		if (ticks >= PM_TICKS)
			return passed * PM_HZ / 1000 / ticks;
	} while (passed < SAMPLE_LIMIT);
	return 0;
}

/* The same with the PIT. It has run when its output was seen low before it was high. */
static u32 pit_run(bool *ran)
{
	u8 control = in8(PIT_CONTROL) & ~(PIT_GATE | PIT_SPEAKER);
	u64 begin, passed;

	*ran = false;

	out8(PIT_CONTROL, control);
	out8(PIT_COMMAND, PIT_CHANNEL2_MODE0);
	out8(PIT_CHANNEL2, PIT_COUNT & 0xff);
	out8(PIT_CHANNEL2, PIT_COUNT >> 8);
	begin = cycles();
	out8(PIT_CONTROL, control | PIT_GATE);
	do {
		relax();
		if (!(in8(PIT_CONTROL) & PIT_OUTPUT))
			*ran = true;
		else
			return (cycles() - begin) * PIT_HZ / 1000 / PIT_COUNT;
		passed = cycles() - begin;
	} while (passed < SAMPLE_LIMIT);
	return 0;
}

/* A host that is busy elsewhere may miss a run, and where there is no PIT all are missed. */
static u32 pit_sample(void)
{
	bool ran;
	u32 khz;
	int i;

	for (i = 0; i < SAMPLES; i++) {
		khz = pit_run(&ran);
		if (ran)
			return khz;
	}
	return 0;
}

/* The median of the samples; 0 when one fails, or when no TSC is like that. */
static u32 median(u32 (*sample)(void))
{
	u32 khz[SAMPLES], one;
	int i, j;

	for (i = 0; i < SAMPLES; i++) {
		one = sample();
		if (!one)
			return 0;
		for (j = i; j > 0 && khz[j - 1] > one; j--)
			khz[j] = khz[j - 1];
		khz[j] = one;
	}
	one = khz[SAMPLES / 2];
	return one < KHZ_LEAST || one > KHZ_MOST ? 0 : one;
}

void clock_calibrate(void)
{
	calibrated_by = "pm";
	if (handover.pm_port)
		tsc_khz = median(pm_sample);
	if (tsc_khz)
		return;
	calibrated_by = "pit";
	tsc_khz = median(pit_sample);
	if (tsc_khz)
		return;
	calibrated_by = "tsc";
	tsc_khz = KHZ_MOST;
}

u32 clock_khz(void)
{
	return tsc_khz;
}

const char *clock_name(void)
{
	return calibrated_by;
}

u64 clock_ms(u64 passed)
{
	return tsc_khz ? passed / tsc_khz : 0;
}

u64 clock_cycles(u64 us)
{
	return (us * tsc_khz + 999) / 1000;
}

void clock_wait(u64 us)
{
	u64 begin = cycles(), length = clock_cycles(us);

	while (cycles() - begin < length)
		relax();
}
