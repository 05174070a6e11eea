"""HTML report of a run: one self-contained page, `report.html`, that works offline."""
