/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The record: what was done and how long it took, one JSON object in the data of a setup_data node,
 * where the crash kernel shows it in /sys/kernel/boot_params/setup_data. It is complete after each
 * step, so that a reset at any time leaves one that can be read. Blanks fill the rest.
 */
#include "purgatory.h"

/* arch/x86/include/uapi/asm/setup_data.h; the type is crashlend's own, formats/bootparams.py */
struct setup_data {
	u64 next;
	u32 type;
	u32 bytes;
};

#define SETUP_CRASHLEND 0x434c4e44

static struct text steps;		/* ends behind the last complete step */
static struct text step;		/* ends inside the one being written */
static bool some;

/* What every state of the record ends with, and blanks over what was there. */
static void record_close(const char *reason)
{
	struct text text = steps;

	text_string(&text, "]");
	if (clock_khz()) {
		text_string(&text, ",\"tsc_khz\":");
		text_number(&text, clock_khz());
		text_string(&text, ",\"clock\":\"");
		text_string(&text, clock_name());
		text_string(&text, "\"");
	}
	if (reason) {
		text_string(&text, ",\"reset\":\"");
		text_string(&text, reason);
		text_string(&text, "\"");
	}
	text_string(&text, "}");
	while (text.at < text.end)
		*text.at++ = ' ';
	if (handover.record_bytes)
		*text.end = '\n';
}

/*
 * Where the parameters cannot be trusted, the node's own header has to agree with them: blanks must
 * not be written over memory that is to be dumped.
 */
static bool node_agrees(void)
{
	const struct setup_data *node = (const struct setup_data *)handover.record - 1;

	return node->type == SETUP_CRASHLEND && node->bytes == handover.record_bytes;
}

void record_begin(bool trusted)
{
	if (!handover.record || !handover.record_bytes)
		return;
	if (!trusted && !node_agrees())
		return;
	steps.at = (char *)handover.record;
	steps.end = steps.at + handover.record_bytes - 1;
	text_string(&steps, "{\"steps\":[");
	record_close(NULL);
}

void record_step(const char *name, u64 passed)
{
	step = steps;
	text_string(&step, some ? ",{\"step\":\"" : "{\"step\":\"");
	text_string(&step, name);
	text_string(&step, "\",\"ms\":");
	text_number(&step, clock_ms(passed));
}

static void record_key(const char *key)
{
	text_string(&step, ",\"");
	text_string(&step, key);
	text_string(&step, "\":");
}

void record_number(const char *key, u64 value)
{
	record_key(key);
	text_number(&step, value);
}

void record_bool(const char *key, bool value)
{
	record_key(key);
	text_string(&step, value ? "true" : "false");
}

void record_step_end(void)
{
	text_string(&step, "}");
	steps = step;
	some = true;
	if (steps.at)
		record_close(NULL);
}

/* Also before the record was begun, where an exception came too early. */
void record_reset(const char *reason)
{
	if (!steps.at)
		record_begin(false);
	if (steps.at)
		record_close(reason);
}
