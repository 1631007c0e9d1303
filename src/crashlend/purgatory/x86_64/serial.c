/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lines on the serial console of production: an 8250 as its kernel has set it up. A character that
 * cannot be sent in time is the last one that is tried: a port that is not there, or stands still,
 * costs no more than that.
 */
#include "purgatory.h"

#define LINE_STATUS 5
#define LINE_STATUS_EMPTY 0x20		/* the transmitter's holding register takes another one */
#define CHARACTER_CYCLES (1ull << 26)	/* 11 ms or more: one character at 1200 baud */

static bool dead;

static void serial_put(u16 port, char character)
{
	u64 begin = cycles();
	u8 status;

	while (!dead) {
		status = in8(port + LINE_STATUS);
		if (status == 0xff) {
			dead = true;
		} else if (status & LINE_STATUS_EMPTY) {
			out8(port, character);
			return;
		} else if (cycles() - begin > CHARACTER_CYCLES) {
			dead = true;
		}
		relax();
	}
}

static void serial_string(const char *text)
{
	if (!handover.serial_port)
		return;
	while (*text)
		serial_put(handover.serial_port, *text++);
}

void serial_line(const char *text)
{
	serial_string("crashlend: ");
	serial_string(text);
	serial_string("\r\n");
}
