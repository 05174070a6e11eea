"""Commands of the CLI, one module each. Every module defines `command`, which imports its dependencies when it runs."""
