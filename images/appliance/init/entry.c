/* The first instructions. They lie in the file's first page, and fault the other pages in that are
 * needed up to the DHCP request: code and constants to read, data and stack to write. A page fault
 * from user mode is dear under emulation: the emulator keeps what it translates apart by the state
 * of the processor, and that of such a fault (a null stack segment) is one that neither the boot nor
 * a system call has had. Faulted in by a system call, the same pages cost a fifth. */
#include "entry.h"

#include <asm/mman.h>

#include "sys.h"

enum {
    READ_FIRST = 16384,     /* bytes: what the kernel's first read of the file brings */
    WRITTEN_FIRST = 12288,  /* of the zeroed data: main's state comes first in it (link order) */
    STACK_FIRST = 8192,
    PAGE = 4096,
};

extern char init_start[], init_data[];      /* of init.ld */

static void populate(uintptr_t start, size_t size, int how)
{
    SYS3(__NR_madvise, start & ~(uintptr_t)(PAGE - 1), size, how);
}

__attribute__((used)) _Noreturn static void init_entry(void)
{
    populate((uintptr_t)init_start, READ_FIRST, MADV_POPULATE_READ);
    populate((uintptr_t)init_data, WRITTEN_FIRST, MADV_POPULATE_WRITE);
    populate((uintptr_t)__builtin_frame_address(0) - STACK_FIRST, STACK_FIRST + PAGE,
             MADV_POPULATE_WRITE);
    init_main();
}

SYS_ENTRY(init_entry);
