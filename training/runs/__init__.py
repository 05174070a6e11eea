"""Run folders: write, read, resume and compare training runs."""
