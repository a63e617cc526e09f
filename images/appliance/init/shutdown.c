#include "shutdown.h"

#include <linux/reboot.h>

#include "console.h"
#include "mounts.h"
#include "process.h"
#include "sys.h"

enum { GRACE_MS = 3000 };

_Noreturn void shutdown_machine(int signal_fd)
{
    int result;

    process_end_all(signal_fd, GRACE_MS);
    result = mounts_end();
    console_say("going down", result);
    sys_reboot(LINUX_REBOOT_CMD_RESTART);
    sys_reboot(LINUX_REBOOT_CMD_HALT);
    for (;;)
        sys_exit(1);
}
