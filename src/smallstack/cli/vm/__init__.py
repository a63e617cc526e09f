"""The commands of vm-control, one file each, imported when asked for."""
