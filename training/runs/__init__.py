"""Run folders: writing, reading, resuming and comparing them."""
