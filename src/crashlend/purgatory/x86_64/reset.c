/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A host that reboots is better than one that hangs. */
#include "purgatory.h"

#define KEYBOARD_COMMAND 0x64
#define KEYBOARD_PULSE_RESET 0xfe
#define RESET_CONTROL 0xcf9
#define RESET_PREPARE 0x02		/* a hard reset, when bit 2 rises */
#define RESET_HARD 0x06
#define RESET_POWER_CYCLE 0x0e
#define SETTLE_CYCLES (1ull << 27)	/* 22 ms or more */

struct table_pointer {
	u16 limit;
	u64 base;
} __attribute__((packed));

static void settle(void)
{
	u64 begin = cycles();

	while (cycles() - begin < SETTLE_CYCLES)
		relax();
}

/* One way after the other; none returns if it works. */
void reset(void)
{
	static const struct table_pointer none;

	if (handover.reset_port) {
		out8(handover.reset_port, handover.reset_value);
		settle();
	}
	out8(KEYBOARD_COMMAND, KEYBOARD_PULSE_RESET);
	settle();
	out8(RESET_CONTROL, RESET_PREPARE);
	settle();
	out8(RESET_CONTROL, RESET_HARD);
	settle();
	out8(RESET_CONTROL, RESET_POWER_CYCLE);
	settle();
	asm volatile("lidt %0; int3" : : "m"(none));	/* no IDT at all: a triple fault */
	for (;;)
		asm volatile("cli; hlt");
}

/* Say why, leave it in the record, and go. */
void give_up(const char *reason)
{
	serial_line(reason);
	serial_line("resetting the machine");
	record_reset(reason);
	reset();
}
