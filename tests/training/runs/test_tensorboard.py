"""TensorBoard log, read back with TensorBoard's own reader; without the package, an error with the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tlcli.contract.errors import SettingsError
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.runs.tensorboard import TensorboardLog, require_tensorboard

ROWS = [
    EpochRow("head", 1, 0.25, 1.5, 0.5, 1.25, 0.625, 2.0),
    EpochRow("full", 2, 0.125, 0.75, 0.75, 0.5, 0.875, 4.0),
]


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_the_log_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    log = TensorboardLog(tmp_path)
    log.on_epoch_end(ROWS[0], True)
    log.on_step_end(1, 0.375)
    log.on_step_end(2, 0.3125)
    log.on_epoch_end(ROWS[1], False)
    log.close()
    assert read(tmp_path / "tensorboard" / "train") == {
        "loss": [(1, 1.5), (2, 0.75)],
        "top1": [(1, 0.5), (2, 0.75)],
        "lr": [(1, 0.25), (2, 0.125)],
        "seconds": [(1, 2.0), (2, 4.0)],
        "loss_of_step": [(1, 0.375), (2, 0.3125)],
    }
    assert read(tmp_path / "tensorboard" / "val") == {"loss": [(1, 1.25), (2, 0.5)], "top1": [(1, 0.625), (2, 0.875)]}


def test_an_epoch_is_on_disk_before_training_ends(tmp_path: Path) -> None:
    log = TensorboardLog(tmp_path)
    log.on_epoch_end(ROWS[0], True)
    assert read(tmp_path / "tensorboard" / "val")["loss"] == [(1, 1.25)]
    log.close()


def test_a_resumed_run_appends_to_its_log(tmp_path: Path) -> None:
    for row in ROWS:
        log = TensorboardLog(tmp_path)
        log.on_epoch_end(row, True)
        log.close()
    assert read(tmp_path / "tensorboard" / "val")["top1"] == [(1, 0.625), (2, 0.875)]


def test_without_the_package_the_error_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for ask in (require_tensorboard, lambda: TensorboardLog(tmp_path)):
        with pytest.raises(SettingsError, match=r"^--tensorboard needs .* not installed: pip install 'tlcli\[tensorboard\]'$"):
            ask()
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.training.runs.test_tensorboard import ROWS
from tlcli.training.runs.tensorboard import TensorboardLog
logged = []
log = TensorboardLog(Path(sys.argv[1]), logged.append)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for number in range(30):
    log.on_step_end(number, 1.0)
    log.on_epoch_end(ROWS[0], True)
log.close()
print(*logged, sep=chr(10))
"""


def test_a_full_disk_ends_the_log_with_a_warning_but_not_the_run(tmp_path: Path) -> None:
    """Files cannot grow beyond 100 bytes."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120, check=True)
    assert done.stdout == f"warning: {tmp_path / 'tensorboard'}: File too large: the TensorBoard log ends here, training continues\n"
    assert "Traceback" not in done.stderr, done.stderr
