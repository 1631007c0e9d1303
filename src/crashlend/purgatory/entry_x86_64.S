/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What runs between the two kernels on x86_64. Position independent, one page with its data.
 *
 * The panicking kernel jumps to offset 0 in 64-bit mode: paging on with an identity map of all
 * RAM, interrupts off, GDT and IDT possibly invalid (arch/x86/kernel/relocate_kernel_64.S).
 * The crash kernel wants, at its 64-bit entry, rsi = boot_params, CS 0x10, DS 0x18, DF and IF
 * clear (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
 *
 * Between the two it waits, so that DMA which the dead kernel had started ends before the crash
 * kernel uses lent memory. Time comes from the ACPI PM timer where the firmware names one, else
 * from PIT channel 2. A timer that stands still for 2^33 TSC cycles is given up, so that no
 * broken timer turns a crash into a hang.
 *
 * The loader fills in the parameters at offset 16; entry_x86_64.py knows their layout.
 */
	.set	PIT_CHANNEL2, 0x42
	.set	PIT_COMMAND, 0x43
	.set	PIT_GATE, 0x61
	.set	PIT_COUNT, 59659		/* 50 ms of 1.193182 MHz */

	.code64
	.text
	.globl	start
start:
	jmp	code
	.balign	16
kernel_entry:	.quad	0
boot_params:	.quad	0
pm_ticks:	.quad	0			/* how long to wait, in 3.579545 MHz ticks */
pit_rounds:	.quad	0			/* the same in 50 ms rounds */
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

code:
	cli
	cld
	leaq	stack_top(%rip), %rsp
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
	movq	$1, %r8
	shlq	$33, %r8			/* a timer's time to show life, in TSC cycles */

	movq	pm_ticks(%rip), %rcx
	testq	%rcx, %rcx
	jz	done
	movl	pm_port(%rip), %edx
	testl	%edx, %edx
	jz	pit

	inl	%dx, %eax
	movl	%eax, %ebx			/* the last reading */
	call	read_tsc
	movq	%rax, %r9			/* when it last moved */
pm_poll:
	pause
	inl	%dx, %eax
	movl	%eax, %esi
	subl	%ebx, %esi
	andl	$0xffffff, %esi			/* 24 bits count on every implementation */
	jz	pm_still
	movl	%eax, %ebx
	call	read_tsc
	movq	%rax, %r9
	subq	%rsi, %rcx
	ja	pm_poll
	jmp	done
pm_still:
	call	read_tsc
	subq	%r9, %rax
	cmpq	%r8, %rax
	jb	pm_poll
	/* it stands still: wait the whole time by the PIT */
pit:
	movq	pit_rounds(%rip), %rcx
pit_round:
	testq	%rcx, %rcx
	jz	done
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
	orb	$1, %al
	outb	%al, $PIT_GATE
	call	read_tsc
	movq	%rax, %r9
pit_poll:
	pause
	inb	$PIT_GATE, %al
	testb	$0x20, %al			/* the channel's output */
	jnz	pit_over
	call	read_tsc
	subq	%r9, %rax
	cmpq	%r8, %rax
	jb	pit_poll
	jmp	done				/* this one is dead too */
pit_over:
	decq	%rcx
	jmp	pit_round

done:
	movq	boot_params(%rip), %rsi
	movq	kernel_entry(%rip), %rax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	jmp	*%rax

read_tsc:					/* rax = TSC; keeps rcx, rdx */
	pushq	%rdx
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	popq	%rdx
	ret

	.balign	16
	.skip	128
stack_top:
