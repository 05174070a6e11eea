"""`import tlcli` is fast; loading and predicting need no PyTorch; every exported name exists."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tlcli

HEAVY = ("numpy", "PIL", "click", "pydantic", "onnxruntime", "grpc", "torch", "torchvision", "timm", "onnx", "matplotlib", "scipy")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_importing_it_imports_nothing_heavy() -> None:
    assert run(f"import sys, tlcli; print([name for name in {HEAVY!r} if name in sys.modules])") == "[]"


def test_loading_predicting_and_drawing_need_no_pytorch(models: Path, images: Path) -> None:
    code = (
        f"import sys, tlcli; answer = tlcli.load({str(models)!r}).predict({str(images / 'a.png')!r}, cam='gradcam'); answer.overlay;"
        " answer._repr_html_(); client = tlcli.Client('127.0.0.1:1');"
        " print([name for name in ('torch', 'torchvision', 'timm', 'onnx', 'matplotlib') if name in sys.modules])"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize("name", tlcli.__all__)
def test_every_exported_name_exists(name: str) -> None:
    assert getattr(tlcli, name).__name__ == name
    assert name in dir(tlcli)
    assert getattr(tlcli, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tlcli.nothing  # type: ignore[attr-defined]


def test_no_module_replaces_a_function() -> None:
    """Importing a submodule `tlcli.load` would put the module where the function was."""
    folder = Path(tlcli.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()}
    assert modules.isdisjoint(tlcli.__all__)
    for module in {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}:
        importlib.import_module(f"tlcli.{module}")
    assert all(getattr(tlcli, name).__name__ == name for name in tlcli.__all__)
