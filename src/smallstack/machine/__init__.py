"""One QEMU process: accelerator, command line, launch, monitor, console, the guest's own port.

What it is not: it knows no images, no networks and no records. It is given a kernel's path, disks
and tap descriptors in a `spec.MachineSpec`, and gives back a `process.Machine` that says how the
process ended.

::

    accelerator  auto | kvm | tcg, by running a real guest         csrc/kvm_probe.c
    kernel       which kernel of an image, and is it PVH
    spec         what a machine consists of (data)
    command      spec -> QEMU's argument vector (pure)
    start        open what QEMU needs, spawn it; find its process  csrc/spawn.c
    cgroup       a machine's share of the processors
    process      launch, find again, stop, reboot, quit, wait
    monitor      the QMP session
    lifecycle    why a machine ended (pure)
    console      serial console: bounded log on disk, one client
    agent_port   the words between agent and guest init (sans-I/O)
"""
