/* A kernel for tests of boot loaders: writes its command line and the start of its initrd on the
 * serial port, and goes off when its power button is pressed (q35: PM1a at 0x600). Loaded as Linux
 * is: in 32-bit mode by GRUB on a BIOS, in 64-bit mode by the EFI handover protocol.
 * Source: Documentation/arch/x86/boot.rst of Linux 6.1.
 */
    .set setup_sectors, 1
    .set port, 0x3f8
    .set command_line, 0x228
    .set initrd, 0x218
    .set initrd_size, 0x21c

    .code16
start:
    .org 0x1f1
    .byte setup_sectors
    .word 0
    .long (end - protected + 15) / 16
    .word 0, 0xffff, 0
    .word 0xaa55
    .byte 0xeb, header_end - . - 1          /* 0x200 */
    .ascii "HdrS"
    .word 0x020c
    .long 0
    .word 0, 0
    .byte 0, 1                              /* 0x210: loader, LOADED_HIGH */
    .word 0
    .long 0x100000
    .long 0, 0                              /* 0x218: initrd */
    .long 0
    .word 0
    .byte 0, 0
    .long 0                                 /* 0x228: command line */
    .long 0x37ffffff
    .long 0x1000
    .byte 1, 12                             /* 0x234: relocatable */
    .word 8                                 /* XLF_EFI_HANDOVER_64 */
    .long 2047
    .long 0, 0, 0, 0
    .long 0, 0                              /* 0x248: payload */
    .quad 0                                 /* 0x250: setup_data */
    .quad 0x100000
    .long 0x10000                           /* 0x260: memory it needs */
    .long handover - protected - 0x200
header_end:
    .org (setup_sectors + 1) * 512

    .code32
protected:
    mov %esi, %ebx
    call 1f
1:  pop %ebp
    lea said - 1b(%ebp), %esi
    call say32
    mov command_line(%ebx), %esi
    call say32
    lea between - 1b(%ebp), %esi
    call say32
    mov initrd(%ebx), %esi
    mov initrd_size(%ebx), %ecx
    test %ecx, %ecx
    jz 2f
    call say32
2:  lea finished - 1b(%ebp), %esi
    call say32
    mov $0x602, %edx                        /* wait for the power button, then off */
    mov $0x100, %eax
    out %ax, %dx
3:  pause
    mov $0x600, %edx
    in %dx, %ax
    test $1, %ah
    jz 3b
    mov $0x604, %edx
    mov $0x2000, %eax
    out %ax, %dx
    hlt

say32:                                      /* text at esi, up to a NUL */
    lodsb
    test %al, %al
    jz 5f
    mov %al, %ah
    mov $port + 5, %edx
4:  in %dx, %al
    test $0x20, %al
    jz 4b
    mov %ah, %al
    mov $port, %edx
    out %al, %dx
    jmp say32
5:  ret

    .org (setup_sectors + 1) * 512 + 0x400
    .code64
handover:                                   /* rdx: boot_params */
    cld
    mov %rdx, %rbx
    lea said(%rip), %rsi
    call say64
    mov command_line(%rbx), %esi
    call say64
    lea between(%rip), %rsi
    call say64
    mov initrd(%rbx), %esi
    mov initrd_size(%rbx), %ecx
    test %ecx, %ecx
    jz 2f
    call say64
2:  lea finished(%rip), %rsi
    call say64
    cli
    mov $0x602, %edx
    mov $0x100, %eax
    out %ax, %dx
3:  pause
    mov $0x600, %edx
    in %dx, %ax
    test $1, %ah
    jz 3b
    mov $0x604, %edx
    mov $0x2000, %eax
    out %ax, %dx
    hlt

say64:
    lodsb
    test %al, %al
    jz 5f
    mov %al, %ah
    mov $port + 5, %edx
4:  in %dx, %al
    test $0x20, %al
    jz 4b
    mov %ah, %al
    mov $port, %edx
    out %al, %dx
    jmp say64
5:  ret

said:     .asciz "\nup: "
between:  .asciz "\ninitrd: "
finished: .asciz "\nend of guest\n"
    .balign 512
end:
