"""Disks that others have made: told apart, taken in as they come, turned into raw ones."""
