// SPDX-License-Identifier: GPL-2.0-only
/*
 * Crashes the kernel in a context of one's choice: what stock kernels lack, as their LKDTM is off.
 *
 * insmod crashlend_trigger.ko context=process|irq|softirq|nmi crash=panic|null|overflow|spin|hang cpu=N
 *
 * The crash happens in the module's init, or soon afterwards in that context. A program of the
 * lab's guests: it is loaded into nothing else.
 */
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/irq_work.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/workqueue.h>
#include <asm/apic.h>
#include <asm/nmi.h>

/* Since Linux kernel commit 15115830c887 ("preempt: Cleanup the macro maze a bit") (in v5.11). */
#ifndef in_hardirq
#define in_hardirq() in_irq()
#endif

static char *context = "process";
module_param(context, charp, 0444);
static char *crash = "panic";
module_param(crash, charp, 0444);
static int cpu;
module_param(cpu, int, 0444);

static struct irq_work interrupt_work;
static struct timer_list softirq_timer;
static unsigned long *volatile nowhere;

/* Each level is used after the next one returns: the compiler must not make a loop of it. */
static noinline unsigned long overflow(unsigned long depth)
{
	volatile unsigned char page[1024];

	page[depth % sizeof(page)] = (unsigned char)depth;
	if (depth == ULONG_MAX)
		return 0;
	return overflow(depth + 1) + page[depth % sizeof(page)];
}

static void crash_here(void)
{
	pr_emerg("crashlend_trigger: %s on CPU %d: task %d, interrupt %d, softirq %d, NMI %d\n",
		 crash, raw_smp_processor_id(), !in_interrupt(), !!in_hardirq(),
		 !!in_serving_softirq(), !!in_nmi());
	if (!strcmp(crash, "null"))
		*nowhere = 1;
	else if (!strcmp(crash, "overflow"))
		pr_emerg("%lu\n", overflow(0));
	else if (!strcmp(crash, "spin")) {
		preempt_disable();
		for (;;)
			cpu_relax();
	}
	panic("crashlend_trigger");
}

static void run_in_interrupt(struct irq_work *unused)
{
	crash_here();
}

static void run_in_softirq(struct timer_list *unused)
{
	crash_here();
}

static int run_in_nmi(unsigned int type, struct pt_regs *regs)
{
	if (raw_smp_processor_id() != cpu)
		return NMI_DONE;
	crash_here();
	return NMI_HANDLED;
}

static long run_in_task(void *unused)
{
	crash_here();
	return 0;
}

/* irq_work_queue_on() is not exported */
static long interrupt_this_cpu(void *unused)
{
	return irq_work_queue(&interrupt_work) ? 0 : -EBUSY;
}

static int hang(void *unused)
{
	/* uninterruptible, and not idle: what khungtaskd looks for */
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule();
	return 0;
}

static int __init trigger_init(void)
{
	struct task_struct *task;

	if (cpu < 0 || cpu >= nr_cpu_ids || !cpu_online(cpu))
		return -EINVAL;
	if (!strcmp(crash, "hang")) {
		task = kthread_run(hang, NULL, "crashlend_hang");
		return PTR_ERR_OR_ZERO(task);
	}
	if (!strcmp(context, "process"))
		return work_on_cpu(cpu, run_in_task, NULL);
	if (!strcmp(context, "irq")) {
		init_irq_work(&interrupt_work, run_in_interrupt);
		return work_on_cpu(cpu, interrupt_this_cpu, NULL);
	}
	if (!strcmp(context, "softirq")) {
		timer_setup(&softirq_timer, run_in_softirq, 0);
		softirq_timer.expires = jiffies + 2;
		add_timer_on(&softirq_timer, cpu);
		return 0;
	}
	if (!strcmp(context, "nmi")) {
		int error = register_nmi_handler(NMI_LOCAL, run_in_nmi, 0, "crashlend");

		if (error)
			return error;
		apic->send_IPI(cpu, NMI_VECTOR);
		return 0;
	}
	return -EINVAL;
}

module_init(trigger_init);
MODULE_DESCRIPTION("Crashes the kernel in a context of one's choice");
MODULE_LICENSE("GPL");
