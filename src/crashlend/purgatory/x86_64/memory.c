/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the compiler may call by itself. */
#include "purgatory.h"

void *memcpy(void *to, const void *from, unsigned long bytes)
{
	void *at = to;

	asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes) : : "memory");
	return to;
}

void *memset(void *to, int value, unsigned long bytes)
{
	void *at = to;

	asm volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(value) : "memory");
	return to;
}
