"""The commands of imagetool, one file each, imported when asked for."""
