"""Commands, one file each: `command`, which imports what it needs when it runs."""
