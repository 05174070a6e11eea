"""What the files of a run folder are called."""

from __future__ import annotations

CONFIG, CHECKPOINT, METRICS, RESULTS = "config.json", "checkpoint.safetensors", "metrics.csv", "results.json"
TIMINGS, SPLIT, PREDICTIONS, DATA_SHEET = "timings.csv", "split.json", "predictions.csv", "data_sheet.json"
CURVES, CONFUSION, RELIABILITY, MISTAKES = "curves.png", "confusion_matrix.png", "reliability.png", "mistakes.png"
REPORT, SEARCH = "report.html", "head_search.csv"
TENSORBOARD = "tensorboard"
"""A folder: TensorBoard names its files itself."""
LOCK = ".lock"
"""Only on a file system that cannot lock a folder. It stays: who removed it could remove the one that another process has just locked."""
