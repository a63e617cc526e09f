"""What a guest boots from: the ext4 writer, the partition table, bricks and layers.

A *brick* is a whole disk written once for an image, a size and a firmware, and never again. A
*layer* is one VM's own thin copy of it: label, UUID, fstab and overlay files, in a reflinked file
where the host's file system can share blocks, else in a qcow2 overlay.

The room knows trees, objects and files; it knows nothing of VMs, RPC or QEMU's command line.
"""
