/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text for people and for JSON, into a buffer that it never leaves. */
#include "purgatory.h"

void text_string(struct text *text, const char *string)
{
	while (*string && text->at < text->end)
		*text->at++ = *string++;
}

static void text_digits(struct text *text, u64 value, u32 base)
{
	char digits[21];
	char *at = digits + sizeof(digits) - 1;

	*at = 0;
	do {
		*--at = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	text_string(text, at);
}

void text_number(struct text *text, u64 value)
{
	text_digits(text, value, 10);
}

void text_hex(struct text *text, u64 value)
{
	text_string(text, "0x");
	text_digits(text, value, 16);
}
