/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lent memory is read again and again until it has stayed the same for the time that was asked for.
 *
 * One step of the checksum is a bijection of the sum for any given word, and of the word for any
 * given sum: a single word that changes always changes it, and so does the order of words.
 */
#include "purgatory.h"

#define LANES 4				/* a multiplication takes longer than a load */
#define PIECE_BYTES (1ull << 20)	/* how often the limit is looked at */
#define FACTOR 0x9e3779b97f4a7c15ull	/* odd */

static u64 mix(u64 sum, u64 word)
{
	sum ^= word;
	return (sum << 23 | sum >> 41) * FACTOR;
}

static void add_piece(u64 lanes[LANES], u64 from, u64 to)
{
	const volatile u64 *word = (const volatile u64 *)from;
	u64 a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];

	for (; (u64)word < to; word += LANES) {
		a = mix(a, word[0]);
		b = mix(b, word[1]);
		c = mix(c, word[2]);
		d = mix(d, word[3]);
	}
	lanes[0] = a;
	lanes[1] = b;
	lanes[2] = c;
	lanes[3] = d;
}

/* One pass over all ranges; false when the time was over before its end. */
static bool checksum(u64 begin, u64 limit, u64 *sum)
{
	const struct range *range = table_at(handover.lent_at);
	u64 lanes[LANES] = { 1, 2, 3, 4 }, at, end;
	u32 i;

	for (i = 0; i < handover.lent; i++) {
		for (at = range[i].start; at < range[i].end; at = end) {
			end = at + PIECE_BYTES;
			if (end > range[i].end)
				end = range[i].end;
			add_piece(lanes, at, end);
			if (cycles() - begin > limit)
				return false;
		}
	}
	*sum = mix(mix(mix(lanes[0], lanes[1]), lanes[2]), lanes[3]);
	return true;
}

/*
 * Quiet is what lies between the end of the first of the equal passes and the beginning of the
 * last one: in that time no word has changed, wherever in its pass it was read.
 */
void watch_lent(struct watch *watch)
{
	u64 begin = cycles(), limit = clock_cycles(handover.watch_limit_us);
	u64 wanted = clock_cycles(handover.watch_us);
	u64 sum = 0, last = 0, settled = 0, pass;

	watch->passes = 0;
	watch->changes = 0;
	watch->quiet = false;
	for (;;) {
		pass = cycles();
		if (!checksum(begin, limit, &sum))
			return;
		if (!watch->passes++ || sum != last) {
			watch->changes += watch->passes > 1;
			last = sum;
			settled = cycles();
		} else if (pass - settled >= wanted) {
			watch->quiet = true;
			return;
		}
		if (cycles() - begin > limit)
			return;
	}
}
