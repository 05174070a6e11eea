"""One file a command; each holds a `command` and imports what it needs when it runs."""
