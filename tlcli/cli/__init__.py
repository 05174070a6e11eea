"""Command line: options, parsing, output, and one file for each command."""
