/* The only place whose system calls are never intercepted, and the way into it from a patched site. */
	.text
	.globl gate_start, gate_end, gate_syscall, gate_sigreturn, from_site
	.balign 64
gate_start:
/* long gate_syscall(long nr, long a1 .. a6), C calling convention. */
gate_syscall:
	mov %rdi, %rax
	mov %rsi, %rdi
	mov %rdx, %rsi
	mov %rcx, %rdx
	mov %r8, %r10
	mov %r9, %r8
	mov 8(%rsp), %r9
	syscall
	ret
gate_sigreturn:
	mov $15, %eax
	syscall
	ud2 /* the address that counts is the one behind `syscall` */
gate_end:

/* From a stub: nr in rax, arguments where the kernel wants them. All but rax, rcx, r11 survive,
 * as after `syscall`; serve() is built without vector registers. */
from_site:
	push %rbp
	mov %rsp, %rbp
	push %rdi
	push %rsi
	push %rdx
	push %r10
	push %r8
	push %r9
	sub $16, %rsp
	and $-16, %rsp
	mov %r9, (%rsp)
	mov %r8, %r9
	mov %r10, %r8
	mov %rdx, %rcx
	mov %rsi, %rdx
	mov %rdi, %rsi
	mov %rax, %rdi
	call serve
	lea -48(%rbp), %rsp
	pop %r9
	pop %r8
	pop %r10
	pop %rdx
	pop %rsi
	pop %rdi
	pop %rbp
	ret
	.section .note.GNU-stack,"",@progbits
