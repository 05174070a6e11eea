"""The process it runs in: cores, and the output of libraries."""
