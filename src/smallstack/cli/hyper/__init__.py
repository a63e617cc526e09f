"""The commands of hyper-control, one file each, imported when asked for."""
