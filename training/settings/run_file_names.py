"""Names of the files in a run folder."""

from __future__ import annotations

CONFIG, CHECKPOINT, METRICS, RESULTS = "config.json", "checkpoint.safetensors", "metrics.csv", "results.json"
TIMINGS, SPLIT, PREDICTIONS, DATA_SHEET = "timings.csv", "split.json", "predictions.csv", "data_sheet.json"
CURVES, CONFUSION, RELIABILITY, MISTAKES = "curves.png", "confusion_matrix.png", "reliability.png", "mistakes.png"
REPORT, SEARCH = "report.html", "head_search.csv"
TENSORBOARD = "tensorboard"
"""A folder; TensorBoard chooses the file names in it."""
LOCK = ".lock"
"""Lock file, used only where the file system cannot lock a folder. It is never removed: another process may have just locked it."""
