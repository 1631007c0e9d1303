/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What runs between the two kernels, in its order:
 *
 *	own stack, GDT and IDT (entry.S, exceptions.c)
 *	its own digest		of code, parameters and tables
 *	bus masters off		before anything else takes time
 *	the clock		calibrated
 *	the wait		for DMA that the dead kernel had started
 *	the watch		until lent memory stays as it is
 *	digests			of every segment in the reservation
 *	the copy		of the kernel into lent memory, and its digest
 *
 * A digest that is wrong resets the machine, unless the administrator prefers a doubtful dump.
 */
#include "purgatory.h"

#define COPY_TRIES 4
#define DOUBTFUL_WAIT_US 10000000	/* where the time that was asked for may be anything */

/* A digest is wrong. Returns only where the plan says so. */
static void mismatch(const char *what)
{
	char reason[48];
	struct text text = { reason, reason + sizeof(reason) - 1 };

	text_string(&text, "digest of ");
	text_string(&text, what);
	*text.at = 0;
	if (handover.on_mismatch != ON_MISMATCH_BOOT)
		give_up(reason);
	serial_line(reason);
	serial_line("is wrong; booting all the same");
}

/* "WHAT: NUMBER UNIT" on the console. */
static void tell(const char *what, u64 number, const char *unit)
{
	char line[64];
	struct text text = { line, line + sizeof(line) - 1 };

	text_string(&text, what);
	text_number(&text, number);
	text_string(&text, unit);
	*text.at = 0;
	serial_line(line);
}

/* Everything in this segment that is constant, but the digest itself. */
static bool is_whole(void)
{
	const u8 *behind = handover.sha256 + SHA256_BYTES;
	struct sha256 digest;
	u8 found[SHA256_BYTES];

	sha256_begin(&digest);
	sha256_add(&digest, start, handover.sha256 - start);
	sha256_add(&digest, behind, image_end - behind);
	if (handover.stored_bytes > tables - start)
		sha256_add(&digest, tables, start + handover.stored_bytes - tables);
	sha256_end(&digest, found);
	return sha256_equal(found, handover.sha256);
}

static void record_bus_masters(const struct bus_masters *found, u64 passed)
{
	record_step("bus-masters-off", passed);
	record_number("functions", found->present);
	record_number("cleared", found->cleared);
	record_number("still_on", found->still_on);
	record_step_end();
	tell("bus masters switched off: ", found->cleared, "");
	if (found->still_on || found->present < handover.bus_masters)
		tell("functions that did not answer or heed it: ",
		     handover.bus_masters - found->present + found->still_on, "");
}

/*
 * Whether what the loader handed over can be believed; if not, a doubtful dump is preferred. Devices
 * are stopped first of all that takes time: the clock that tells how long it took comes after that.
 */
static bool steps_before_the_clock(void)
{
	u64 begin = cycles(), checked, stopped;
	struct bus_masters found;
	bool whole = is_whole();

	checked = cycles();
	record_begin(whole);
	if (!whole)
		mismatch("purgatory");
	else if (handover.bus_masters)
		bus_masters_off(&found);
	stopped = cycles();
	clock_calibrate();
	tell("TSC ", clock_khz(), " kHz");
	record_step("self", checked - begin);
	record_number("bad", !whole);
	record_step_end();
	if (whole && handover.bus_masters)
		record_bus_masters(&found, stopped - checked);
	return whole;
}

static void step_wait(u64 us)
{
	u64 begin = cycles(), passed;

	if (!us)
		return;
	tell("waiting for DMA, ", us / 1000, " ms");
	clock_wait(us);
	passed = cycles() - begin;
	record_step("wait", passed);
	record_step_end();
	tell("waited ", clock_ms(passed), " ms");
}

static void step_watch(void)
{
	u64 begin = cycles();
	struct watch watch;

	if (!handover.watch_us)
		return;
	tell("watching lent memory, ", handover.watch_us / 1000, " ms");
	watch_lent(&watch);
	record_step("watch", cycles() - begin);
	record_number("passes", watch.passes);
	record_number("changes", watch.changes);
	record_bool("quiet", watch.quiet);
	record_step_end();
	serial_line(watch.quiet ? "lent memory is quiet" :
		    watch.passes < 2 ? "lent memory could not be read twice in time, going on" :
		    "lent memory is not quiet, going on");
	tell("changes seen: ", watch.changes, "");
}

static void step_verify(void)
{
	const struct region *region = table_at(handover.regions_at);
	u64 begin = cycles(), passed;
	u32 i, bad = 0, first_bad = 0;

	for (i = 0; i < handover.regions; i++) {
		if (sha256_is((const void *)region[i].start, region[i].bytes, region[i].sha256))
			continue;
		if (!bad++)
			first_bad = i;
	}
	passed = cycles() - begin;
	record_step("verify", passed);
	record_number("regions", handover.regions);
	record_number("bad", bad);
	if (bad)
		record_number("first_bad", first_bad);
	record_step_end();
	if (bad)
		mismatch(region[first_bad].name);
	else
		tell("segments are whole, ", clock_ms(passed), " ms");
}

static void copy(u64 to, u64 from, u64 bytes)
{
	bytes /= 8;
	asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

/* Whole pages. What a device writes over the copy, a second one puts right. */
static void step_copy(void)
{
	const struct region *kernel = table_at(handover.regions_at);
	u64 begin = cycles(), passed;
	u32 tries = 0;
	bool whole = false;

	if (!handover.copy_to)
		return;
	kernel += handover.copy_region;
	while (!whole && tries++ < COPY_TRIES) {
		copy(handover.copy_to, kernel->start, kernel->bytes);
		whole = sha256_is((const void *)handover.copy_to, kernel->bytes, kernel->sha256);
	}
	passed = cycles() - begin;
	record_step("copy", passed);
	record_number("tries", whole ? tries : COPY_TRIES);
	record_number("bad", !whole);
	record_step_end();
	if (!whole)
		mismatch("the kernel's copy");
	else
		tell("kernel copied to lent memory, ", clock_ms(passed), " ms");
}

void purgatory(void)
{
	exceptions_install();
	if (steps_before_the_clock()) {
		step_wait(handover.wait_us);
		step_watch();
		step_verify();
	} else {
		/* Times, counts and tables may be anything: what lasts or loops by them is left out. */
		step_wait(DOUBTFUL_WAIT_US);
	}
	step_copy();
	enter(handover.kernel_entry, handover.boot_params);
}
