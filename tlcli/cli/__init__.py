"""Command-line interface: options, argument parsing, output, and one module per command."""
