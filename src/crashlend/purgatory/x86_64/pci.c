/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bus mastering off, by configuration mechanism 1: segment 0, and no memory is touched for it. */
#include "purgatory.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA 0xcfc
#define CONFIG_ENABLE 0x80000000u
#define VENDOR_ID 0x00
#define COMMAND 0x04
#define COMMAND_BUS_MASTER 0x0004
#define NO_VENDOR 0xffff

static void config_select(u16 function, u8 offset)
{
	out32(CONFIG_ADDRESS, CONFIG_ENABLE | (u32)function << 8 | offset);
}

/*
 * Only the functions that the loader named. The command register is written alone: in the status
 * register beside it ones clear bits.
 */
void bus_masters_off(struct bus_masters *found)
{
	const u16 *functions = table_at(handover.bus_masters_at);
	u16 command;
	u32 i;

	found->present = found->cleared = found->still_on = 0;
	for (i = 0; i < handover.bus_masters; i++) {
		config_select(functions[i], VENDOR_ID);
		if (in16(CONFIG_DATA) == NO_VENDOR)
			continue;
		found->present++;
		config_select(functions[i], COMMAND);
		command = in16(CONFIG_DATA);
		if (!(command & COMMAND_BUS_MASTER))
			continue;
		out16(CONFIG_DATA, command & ~COMMAND_BUS_MASTER);
		found->cleared++;
		if (in16(CONFIG_DATA) & COMMAND_BUS_MASTER)
			found->still_on++;
	}
}
