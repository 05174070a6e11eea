"""Decoding of request images within a memory budget, in threads or in separate processes."""
