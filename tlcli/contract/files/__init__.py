"""File utilities: atomic writes of files and folders, file locks, decoding of text files, and printable file names."""
