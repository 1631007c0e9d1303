/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where purgatory begins and ends on x86_64. Position independent.
 *
 * The panicking kernel jumps to offset 0 in 64-bit mode: paging on with an identity map of all
 * RAM, interrupts off, GDT and IDT possibly invalid (arch/x86/kernel/relocate_kernel_64.S).
 * The crash kernel wants, at its 64-bit entry, rsi = boot_params, CS 0x10, DS 0x18, DF and IF
 * clear (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
 */
	.set	NMI, 2
	/* exceptions that push an error code: 8, 10-14, 17, 21, 29, 30 */
	.set	ERROR_CODES, 0x60227d00

	.code64
	.section .head, "ax"
	.globl	start, handover
start:
	jmp	code
	.balign	8
	.long	image_end - start
	.long	tables - start
handover:				/* struct handover, at offset 16 */
	.skip	HANDOVER_BYTES

	.text
code:
	cli
	cld
	leaq	stack_top(%rip), %rsp
	leaq	bss_start(%rip), %rdi	/* everything that is written to, the stack too */
	leaq	tables(%rip), %rcx
	subq	%rdi, %rcx
	xorl	%eax, %eax
	rep stosb

	leaq	gdt(%rip), %rax
	pushq	%rax
	subq	$8, %rsp
	movw	$(gdt_end - gdt - 1), 6(%rsp)
	lgdt	6(%rsp)
	addq	$16, %rsp
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
	call	purgatory		/* does not return */

	.globl	enter			/* (kernel_entry, boot_params) */
enter:
	movq	%rdi, %rax		/* rsi is boot_params already */
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	cld
	jmp	*%rax

	.globl	cycles			/* the TSC; the one place that reads it */
cycles:
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	ret

/*
 * An NMI (a watchdog, a management controller) returns. Every other exception ends in
 * exception(vector, rip, cr2) on the stack that it found.
 */
	.globl	exception_stubs
	.balign	16
exception_stubs:
	.set	vector, 0
	.rept	32
	.balign	16
	.if	vector == NMI
	iretq
	.else
	.if	!(ERROR_CODES >> vector & 1)
	pushq	$0
	.endif
	pushq	$vector
	jmp	exception_common
	.endif
	.set	vector, vector + 1
	.endr

exception_common:
	cld
	movq	(%rsp), %rdi
	movq	16(%rsp), %rsi
	movq	%cr2, %rdx
	andq	$-16, %rsp
	call	exception		/* does not return */

	.section .rodata
	.balign	16
gdt:	.quad	0, 0
	.quad	0x00af9b000000ffff	/* 0x10: 64-bit code; accessed, so that no one writes here */
	.quad	0x00cf93000000ffff	/* 0x18: data */
gdt_end:

	.bss
	.balign	16
	.skip	4096
stack_top:

	.section .note.GNU-stack, "", @progbits
