"""The command line: one short file a command, heavy imports inside the command."""

__version__ = "0.1.0"
