"""Files and names on disk: written whole or not at all, read in any encoding, shown on one line."""
