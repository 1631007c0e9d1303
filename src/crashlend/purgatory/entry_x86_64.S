/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What runs between the two kernels on x86_64. Position independent, in one page:
 *
 *	0x000	code and parameters, all that is stored
 *	0x800	IDT, written at run time
 *	0x1000	top of the stack
 *
 * The panicking kernel jumps to offset 0 in 64-bit mode: paging on with an identity map of all
 * RAM, interrupts off, GDT and IDT possibly invalid (arch/x86/kernel/relocate_kernel_64.S).
 * The crash kernel wants, at its 64-bit entry, rsi = boot_params, CS 0x10, DS 0x18, DF and IF
 * clear (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
 *
 * First it installs tables of its own. An NMI (a watchdog, a management controller) returns; every
 * other exception resets the machine, because a host that reboots is better than one that hangs.
 *
 * Then it waits, so that DMA which the dead kernel had started ends before the crash kernel uses
 * lent memory. Time comes from the ACPI PM timer where the firmware names one, else from PIT
 * channel 2. A PM timer that stands still for 2^33 TSC cycles gives way to the PIT. Whatever the
 * timers do, the wait ends when the TSC has gained tsc_cycles, which no machine does too early:
 * a missing or broken timer neither hangs the crash nor skips the wait.
 *
 * Last, where the plan says so, it copies the compressed kernel from the reservation into lent
 * memory, where there is room for it to unpack itself.
 *
 * The loader fills in the parameters at offset 16; entry_x86_64.py knows their layout.
 */
	.set	PIT_CHANNEL2, 0x42
	.set	PIT_COMMAND, 0x43
	.set	PIT_GATE, 0x61
	.set	PIT_COUNT, 59659		/* 50 ms of 1.193182 MHz */
	.set	KEYBOARD_COMMAND, 0x64
	.set	RESET_CONTROL, 0xcf9
	.set	EXCEPTIONS, 32			/* any other vector is a #GP */
	.set	NMI, 2

	.code64
	.text
start:
	jmp	code
	.balign	16
kernel_entry:	.quad	0
boot_params:	.quad	0
pm_ticks:	.quad	0			/* how long to wait, in 3.579545 MHz ticks */
pit_rounds:	.quad	0			/* the same in 50 ms rounds */
tsc_cycles:	.quad	0			/* the same on the fastest TSC there is */
copy_from:	.quad	0			/* the stored kernel, */
copy_to:	.quad	0			/* where it shall run, */
copy_quads:	.quad	0			/* and its size in 8 bytes; 0: it runs where it is */
pm_port:	.long	0			/* I/O port of the PM timer, 0: none */
		.long	0

	.balign	16
gdt:	.quad	0, 0
	.quad	0x00af9a000000ffff		/* 0x10: 64-bit code */
	.quad	0x00cf92000000ffff		/* 0x18: data */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	0
idt_pointer:
	.word	EXCEPTIONS * 16 - 1
	.quad	0

	.set	idt, start + 0x800
	.set	stack_top, start + 0x1000

code:
	cli
	cld
	leaq	stack_top(%rip), %rsp

	leaq	idt(%rip), %rdi
	movq	%rdi, idt_pointer + 2(%rip)
	leaq	reset(%rip), %rax
	movzwl	%ax, %ebx
	orl	$0x10 << 16, %ebx		/* CS, offset 15..0 */
	movl	%eax, %edx
	movw	$0x8e00, %dx			/* offset 31..16, interrupt gate, no IST */
	shrq	$32, %rax			/* offset 63..32 */
	movl	$EXCEPTIONS, %ecx
fill_idt:
	movl	%ebx, (%rdi)
	movl	%edx, 4(%rdi)
	movq	%rax, 8(%rdi)
	addq	$16, %rdi
	decl	%ecx
	jnz	fill_idt
	leaq	nmi(%rip), %rax			/* in the same page: only bits 15..0 differ */
	movw	%ax, idt + NMI * 16(%rip)

	leaq	gdt(%rip), %rax
	movq	%rax, gdt_pointer + 2(%rip)
	lgdt	gdt_pointer(%rip)
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	leaq	flat(%rip), %rax
	pushq	$0x10
	pushq	%rax
	lretq
flat:
	lidt	idt_pointer(%rip)

	movq	pm_ticks(%rip), %rcx
	testq	%rcx, %rcx
	jz	done
	call	begin
	movl	pm_port(%rip), %edx
	testl	%edx, %edx
	jz	pit

	inl	%dx, %eax
	movl	%eax, %ebx			/* the last reading */
	xorl	%r9d, %r9d			/* when it last moved */
pm_poll:
	pause
	call	passed
	jae	done
	movq	%rax, %rdi
	inl	%dx, %eax
	movl	%eax, %esi
	subl	%ebx, %esi
	andl	$0xffffff, %esi			/* 24 bits count on every implementation */
	jz	pm_still
	movl	%eax, %ebx
	movq	%rdi, %r9
	subq	%rsi, %rcx
	ja	pm_poll
	jmp	done
pm_still:
	subq	%r9, %rdi
	shrq	$33, %rdi
	jz	pm_poll
	/* it stands still: wait the whole time by the PIT */
pit:
	movq	pit_rounds(%rip), %rcx
pit_round:
	inb	$PIT_GATE, %al
	andb	$0xfc, %al			/* gate closed, speaker off */
	outb	%al, $PIT_GATE
	movb	$0xb0, %al			/* channel 2, both bytes, mode 0, binary */
	outb	%al, $PIT_COMMAND
	movb	$(PIT_COUNT & 0xff), %al
	outb	%al, $PIT_CHANNEL2
	movb	$(PIT_COUNT >> 8), %al
	outb	%al, $PIT_CHANNEL2
	inb	$PIT_GATE, %al
	andb	$0xfc, %al
	orb	$1, %al
	outb	%al, $PIT_GATE
	xorl	%ebx, %ebx			/* 1: the output has been low */
pit_poll:
	pause
	call	passed
	jae	done
	inb	$PIT_GATE, %al
	testb	$0x20, %al			/* the channel's output */
	jnz	pit_over
	movl	$1, %ebx
	jmp	pit_poll
pit_over:
	/* where there is no PIT it was never low: such rounds count nothing, and the TSC ends them */
	subq	%rbx, %rcx
	jnz	pit_round

done:
	/* placement "lent": only now, after the wait, may lent memory be written */
	movq	copy_from(%rip), %rsi
	movq	copy_to(%rip), %rdi
	movq	copy_quads(%rip), %rcx
	rep movsq				/* none in the placement "reserved" */

	movq	boot_params(%rip), %rsi
	movq	kernel_entry(%rip), %rax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	jmp	*%rax

begin:						/* passed counts from now on */
	xorl	%r8d, %r8d
	call	passed
	movq	%rax, %r8
	ret

passed:						/* rax = TSC cycles since begin; "ae": tsc_cycles are over */
	pushq	%rdx
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	popq	%rdx
	subq	%r8, %rax
	cmpq	tsc_cycles(%rip), %rax
	ret

nmi:
	iretq

reset:						/* one way after the other, none returns if it works */
	movb	$0xfe, %al
	outb	%al, $KEYBOARD_COMMAND		/* pulse the processor's reset line */
	call	delay
	movl	$RESET_CONTROL, %edx
	movb	$0x02, %al			/* prepare a hard reset */
	outb	%al, %dx
	call	delay
	movb	$0x06, %al			/* do it */
	outb	%al, %dx
	call	delay
	movb	$0x0e, %al			/* or turn the power off and on */
	outb	%al, %dx
	call	delay
	lidt	gdt(%rip)			/* zeros, so no IDT at all: */
	int3					/* a triple fault */

delay:						/* 2^27 TSC cycles, 20 ms or more */
	call	begin
delay_poll:
	pause
	call	passed
	shrq	$27, %rax
	jz	delay_poll
	ret
