"""The lines of the documentation in a real Jupyter kernel: an answer, a list, a run and progress show themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.conftest import REPOSITORY
from tests.helpers.training.tiny_training import BACKBONE, put_colours
from tlcli.service import ServerSettings, in_background

CELLS = """
import tlcli
---
model = tlcli.load("models/toy")
model
---
answer = model.predict("cat.png", cam="gradcam")
answer
---
answer.label, answer.score, answer.top(3), answer.map.shape
---
answer.overlay
---
model.predict(["cat.png", "cat.png"], cam="gradcam")
---
settings = {"weights": "none", "image_size": 32, "epochs": 2, "batch_size": 8, "workers": 0, "device": "cpu", "output": "runs/pets"}
run = tlcli.finetune("data", backbone="BACKBONE", **settings)
---
run
---
model = tlcli.export(run)
model
---
tlcli.Client("localhost:PORT").predict("cat.png", cam="gradcam", model="toy")
"""


def shown(cell: Any, kind: str) -> list[str]:
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def cells(models: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells, executed in a kernel of their own."""
    home = tmp_path_factory.mktemp("notebook")
    (home / "models").symlink_to(models)
    (home / "cat.png").write_bytes((images / "a.png").read_bytes())
    put_colours(home / "data")
    environment = {"PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(home / "ipython"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    with pytest.MonkeyPatch.context() as patch, in_background(ServerSettings(models=models, port=0, device="cpu")) as port:
        for name, value in environment.items():
            patch.setenv(name, value)
        sources = CELLS.replace("PORT", str(port)).replace("BACKBONE", BACKBONE).split("---\n")
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources])  # type: ignore[no-untyped-call]
        try:
            NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(home)}}).execute()
        except CellExecutionError as error:
            pytest.fail(str(error))
    assert os.environ.get("IPYTHONDIR") != str(home / "ipython")
    return list(notebook.cells)


def test_a_model_an_answer_and_a_list_show_themselves(cells: list[Any]) -> None:
    _, model, answer, values, overlay, several = cells[:6]
    assert "toy" in shown(model, "text/html")[0]
    assert shown(answer, "text/html")[0].count("<img src='data:image/png;base64,") == 2
    assert shown(answer, "image/png"), "frontends without HTML show the overlay"
    assert shown(answer, "text/plain")[0].startswith("Answer('red', 0.")
    assert "ClassScore(label='red'" in shown(values, "text/plain")[0]
    assert shown(overlay, "image/png")
    assert shown(several, "text/html")[0].count("<figure") == 2


def test_progress_is_a_line_per_step_that_stays_readable(cells: list[Any]) -> None:
    training = cells[6]
    bars = shown(training, "text/html")
    assert bars
    assert any(" of " in bar and bar.rstrip().endswith(" s") for bar in bars), "finished bars say how long it took"
    assert not any("<progress" in bar for bar in bars), "no bar is left unfinished"
    assert "warning: --weights none" in printed(training)


def test_a_run_shows_its_figures_and_its_curves(cells: list[Any]) -> None:
    run, model = cells[7:9]
    assert "val_top1" in shown(run, "text/html")[0]
    assert "<img" in shown(run, "text/html")[0]
    assert "pets" in shown(model, "text/html")[0]


def test_a_server_gives_the_same_answer(cells: list[Any]) -> None:
    assert shown(cells[9], "text/html") == shown(cells[2], "text/html")
