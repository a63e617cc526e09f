/* The end: processes, file systems, reset. */
#ifndef INIT_SHUTDOWN_H
#define INIT_SHUTDOWN_H

/* Ends every process, takes the file systems down and resets the machine; under QEMU's -no-reboot
 * that ends it. */
_Noreturn void shutdown_machine(int signal_fd);

#endif
