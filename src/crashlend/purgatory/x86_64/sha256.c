/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* SHA-256 as in FIPS 180-4. */
#include "purgatory.h"

#define BLOCK_BYTES 64
#define ROUNDS 64

/* FIPS 180-4, 4.2.2 */
static const u32 K[ROUNDS] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5,
	0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
	0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
	0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5,
	0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline u32 rotate(u32 x, u32 by)
{
	return x >> by | x << (32 - by);
}

static inline u32 big_endian(const u8 *at)
{
	u32 word;

	__builtin_memcpy(&word, at, sizeof(word));
	return __builtin_bswap32(word);
}

static u32 schedule(u32 w[16], u32 i)
{
	u32 early = w[(i + 1) & 15], late = w[(i + 14) & 15];

	early = rotate(early, 7) ^ rotate(early, 18) ^ early >> 3;
	late = rotate(late, 17) ^ rotate(late, 19) ^ late >> 10;
	return w[i & 15] += early + w[(i + 9) & 15] + late;
}

static void add_block(u32 state[8], const u8 *block)
{
	u32 a = state[0], b = state[1], c = state[2], d = state[3];
	u32 e = state[4], f = state[5], g = state[6], h = state[7];
	u32 w[16], one, two, i;

	for (i = 0; i < ROUNDS; i++) {
		one = i < 16 ? (w[i] = big_endian(block + 4 * i)) : schedule(w, i);
		one += h + K[i] + (g ^ (e & (f ^ g)));
		one += rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
		two = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
		two += (a & b) | (c & (a | b));
		h = g;
		g = f;
		f = e;
		e = d + one;
		d = c;
		c = b;
		b = a;
		a = one + two;
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

void sha256_begin(struct sha256 *digest)
{
	/* FIPS 180-4, 5.3.3 */
	static const u32 first[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};
	u32 i;

	for (i = 0; i < 8; i++)
		digest->state[i] = first[i];
	digest->bytes = 0;
}

void sha256_add(struct sha256 *digest, const void *data, u64 bytes)
{
	const u8 *at = data, *end = at + bytes;
	u32 filled = digest->bytes % BLOCK_BYTES;

	digest->bytes += bytes;
	while (at < end) {
		if (!filled && end - at >= BLOCK_BYTES) {
			add_block(digest->state, at);
			at += BLOCK_BYTES;
			continue;
		}
		digest->block[filled++] = *at++;
		if (filled == BLOCK_BYTES) {
			add_block(digest->state, digest->block);
			filled = 0;
		}
	}
}

void sha256_end(struct sha256 *digest, u8 out[SHA256_BYTES])
{
	u64 bits = digest->bytes * 8;
	u8 byte = 0x80;
	u8 length[8];
	u32 i;

	do {
		sha256_add(digest, &byte, 1);
		byte = 0;
	} while (digest->bytes % BLOCK_BYTES != BLOCK_BYTES - sizeof(length));
	for (i = 0; i < sizeof(length); i++)
		length[i] = bits >> (56 - 8 * i);
	sha256_add(digest, length, sizeof(length));
	for (i = 0; i < SHA256_BYTES; i++)
		out[i] = digest->state[i / 4] >> (24 - 8 * (i % 4));
}

bool sha256_equal(const u8 *a, const u8 *b)
{
	u32 i, differ = 0;

	for (i = 0; i < SHA256_BYTES; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

bool sha256_is(const void *data, u64 bytes, const u8 wanted[SHA256_BYTES])
{
	struct sha256 digest;
	u8 found[SHA256_BYTES];

	sha256_begin(&digest);
	sha256_add(&digest, data, bytes);
	sha256_end(&digest, found);
	return sha256_equal(found, wanted);
}
