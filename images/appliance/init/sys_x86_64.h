/* System calls and process entry on x86_64 (System V ABI; Linux: number in rax, arguments in
 * rdi rsi rdx r10 r8 r9, result or -errno in rax). One such file per architecture. */
#ifndef INIT_SYS_X86_64_H
#define INIT_SYS_X86_64_H

static inline long sys_call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The kernel enters with the argument block on the stack; nothing of it is used. */
#define SYS_ENTRY(function)            \
    __asm__(".globl _start\n"          \
            "_start:\n"                \
            "    xor %ebp, %ebp\n"     \
            "    and $-16, %rsp\n"     \
            "    call " #function "\n" \
            "    hlt\n")

#endif
