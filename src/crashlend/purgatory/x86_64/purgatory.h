/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What every part of purgatory knows: the types, the processor's few instructions that C does not
 * have, and what the loader hands over.
 */
#ifndef PURGATORY_H
#define PURGATORY_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

/* All symbols are reached relative to the instruction, so that any address will do. */
#pragma GCC visibility push(hidden)

#define SHA256_BYTES 32

/* A piece of the reservation, and the digest of what was loaded there. */
struct region {
	u64 start;
	u64 bytes;
	u8 sha256[SHA256_BYTES];
	char name[16];			/* ends with a NUL */
};

/* Lent memory, half-open, whole pages. */
struct range {
	u64 start;
	u64 end;
};

#define ON_MISMATCH_BOOT 0x544f4f42	/* "BOOT"; anything else, a flipped bit of it too: reset */

/*
 * At offset 16 of the segment. The loader fills it in, purgatory/x86_64.py has the same table.
 * Offsets (*_at) are relative to the segment's start.
 */
struct handover {
	u8 sha256[SHA256_BYTES];	/* of all that is constant in the segment but itself */
	u64 kernel_entry;
	u64 boot_params;
	u64 copy_to;			/* where the kernel shall run; 0: where it is stored */
	u64 record;			/* room for the record, blank; 0: there is none */
	u64 wait_us;
	u64 watch_us;			/* lent memory must stay unchanged for so long; 0: no watch */
	u64 watch_limit_us;
	u32 record_bytes;
	u32 on_mismatch;
	u32 copy_region;		/* which region holds the kernel */
	u32 pm_port;			/* ACPI PM timer, 0: none */
	u32 serial_port;		/* 8250, 0: none */
	u32 reset_port;			/* ACPI reset register, 0: none */
	u32 reset_value;
	u32 stored_bytes;		/* of this segment */
	u32 regions_at;
	u32 regions;
	u32 lent_at;
	u32 lent;
	u32 bus_masters_at;		/* u16 each: bus << 8 | device << 3 | function */
	u32 bus_masters;
};

/* entry.S and purgatory.lds */
extern const u8 start[];		/* the segment */
extern const u8 image_end[];		/* end of code and constants */
extern const u8 tables[];		/* what the loader appended, behind all that is written to */
extern const struct handover handover;
extern const u8 exception_stubs[];
u64 cycles(void);			/* the TSC */
_Noreturn void enter(u64 kernel_entry, u64 boot_params);

static inline const void *table_at(u32 offset)
{
	return start + offset;
}

static inline u8 in8(u16 port)
{
	u8 value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline u16 in16(u16 port)
{
	u16 value;

	asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline u32 in32(u16 port)
{
	u32 value;

	asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void out8(u16 port, u8 value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(u16 port, u16 value)
{
	asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(u16 port, u32 value)
{
	asm volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline void relax(void)
{
	asm volatile("pause" : : : "memory");
}

/* clock.c */
void clock_calibrate(void);
u32 clock_khz(void);			/* of the TSC; 0 before it is calibrated */
const char *clock_name(void);
u64 clock_ms(u64 cycles);
u64 clock_cycles(u64 us);		/* rounded up */
void clock_wait(u64 us);

/* exceptions.c */
void exceptions_install(void);

/* main.c */
_Noreturn void purgatory(void);

/* pci.c */
struct bus_masters {
	u32 present;			/* of those named, how many answer */
	u32 cleared;			/* how many had the bit set */
	u32 still_on;			/* how many have it set afterwards */
};

void bus_masters_off(struct bus_masters *found);

/* record.c */
void record_begin(bool trusted);
void record_step(const char *name, u64 cycles);
void record_number(const char *key, u64 value);
void record_bool(const char *key, bool value);
void record_step_end(void);
void record_reset(const char *reason);

/* reset.c */
_Noreturn void reset(void);
_Noreturn void give_up(const char *reason);

/* serial.c */
void serial_line(const char *text);

/* sha256.c */
struct sha256 {
	u32 state[8];
	u64 bytes;
	u8 block[64];
};

void sha256_begin(struct sha256 *digest);
void sha256_add(struct sha256 *digest, const void *data, u64 bytes);
void sha256_end(struct sha256 *digest, u8 out[SHA256_BYTES]);
bool sha256_is(const void *data, u64 bytes, const u8 wanted[SHA256_BYTES]);
bool sha256_equal(const u8 *a, const u8 *b);

/* text.c: text into a buffer, cut where that ends */
struct text {
	char *at;
	char *end;
};

void text_string(struct text *text, const char *string);
void text_number(struct text *text, u64 value);
void text_hex(struct text *text, u64 value);

/* watch.c */
struct watch {
	u64 passes;
	u64 changes;
	bool quiet;
};

void watch_lent(struct watch *watch);

#pragma GCC visibility pop

#endif
