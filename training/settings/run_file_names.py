"""File names in a run folder."""

from __future__ import annotations

CONFIG, CHECKPOINT, METRICS, RESULTS = "config.json", "checkpoint.safetensors", "metrics.csv", "results.json"
TIMINGS, SPLIT, PREDICTIONS, DATA_SHEET = "timings.csv", "split.json", "predictions.csv", "data_sheet.json"
CURVES, CONFUSION, RELIABILITY, MISTAKES = "curves.png", "confusion_matrix.png", "reliability.png", "mistakes.png"
REPORT, SEARCH = "report.html", "head_search.csv"
TENSORBOARD = "tensorboard"
"""Folder for TensorBoard event files, whose names TensorBoard chooses."""
LOCK = ".lock"
"""Lock file, used only if the file system cannot lock a folder. It is never removed, since another process may have just locked it."""
