"""Atomic writes of files and folders, file locks, text files in any encoding, and printable file names."""
