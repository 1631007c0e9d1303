/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Own exceptions from the first: the tables of the dead kernel may be anything. */
#include "purgatory.h"

#define EXCEPTIONS 32			/* any other vector is a #GP */
#define STUB_BYTES 16
#define KERNEL_CS 0x10
#define INTERRUPT_GATE 0x8e00		/* no IST: the stack that it found */
#define PAGE_FAULT 14

struct gate {
	u16 offset_low;
	u16 selector;
	u16 kind;
	u16 offset_middle;
	u32 offset_high;
	u32 zero;
};

static struct gate idt[EXCEPTIONS];
static bool nested;

void exceptions_install(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer = { sizeof(idt) - 1, (u64)idt };
	u64 stub = (u64)exception_stubs;
	u32 vector;

	for (vector = 0; vector < EXCEPTIONS; vector++, stub += STUB_BYTES) {
		idt[vector].offset_low = stub;
		idt[vector].selector = KERNEL_CS;
		idt[vector].kind = INTERRUPT_GATE;
		idt[vector].offset_middle = stub >> 16;
		idt[vector].offset_high = stub >> 32;
	}
	asm volatile("lidt %0" : : "m"(pointer));
}

_Noreturn void exception(u64 vector, u64 rip, u64 address);

/* From entry.S. One in here, or while the record is written, goes straight to the reset. */
void exception(u64 vector, u64 rip, u64 address)
{
	char reason[80];
	struct text text = { reason, reason + sizeof(reason) - 1 };

	if (nested)
		reset();
	nested = true;
	text_string(&text, "exception ");
	text_number(&text, vector);
	text_string(&text, " at ");
	text_hex(&text, rip);
	if (vector == PAGE_FAULT) {
		text_string(&text, " touching ");
		text_hex(&text, address);
	}
	*text.at = 0;
	give_up(reason);
}
