"""The short form of `benchmarks/hostile.py`: attacks of a few percent of their size, among valid requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ATTACKS = ("field_bombs", "json_bombs", "compressed_bombs", "odd_queries", "foreign_pages", "abandoned_uploads", "unfinished_messages")
LONGER = ("connection_flood", "dynamic_sizes", "scan_bombs")


@pytest.mark.slow
def test_a_server_under_attack_answers_right_and_stops_in_time(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [
        sys.executable,
        "benchmarks/hostile.py",
        "--seconds",
        "5",
        "--rest",
        "5",
        "--max-decode-s",
        "0.5",
        "--scale",
        "0.03",
        "--json",
        str(file),
        *ATTACKS,
        *LONGER,
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["wrong answers"] == 0, figures["first wrong answer"]
    assert figures["valid requests answered"] > 50
    assert figures["valid requests failed"] == {}
    assert figures["failed health checks"] == 0
    assert figures["peak memory, MiB"] < 1200
    assert figures["memory after, MiB"] < figures["memory before, MiB"] + 50
    assert figures["exit code"] == 0
    assert figures["from SIGTERM to the end, s"] < figures["grace, s"] + 3
    assert figures["tracebacks in the log"] == 0
    assert figures["models ready at the end"] == ["mobilenetv3_small_100", "test_resnet"]
    assert set(figures["attacks"]) == {*ATTACKS, *LONGER}
    outcomes = set().union(*(attack["outcomes"] for attack in figures["attacks"].values()))
    assert not {"500", "INTERNAL", "UNKNOWN"} & outcomes
    assert not [outcome for outcome in outcomes if outcome.startswith("Traceback")]
