"""Our metadata reader returns the same as the onnx package."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.helper
import pytest

from tlcli.contract.errors import ModelFileError
from tlcli.contract.model.onnx_metadata import read_metadata


def write(path: Path, properties: dict[str, str]) -> Path:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [100_000], [0.5] * 100_000)
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [result], [weights])
    model = onnx.helper.make_model(graph, producer_name="somebody", model_version=2**40)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("properties", [{}, {"a": "b"}, {"long": "x" * 70_000, "ümlaut": "Größe", "empty": ""}])
def test_it_reads_what_onnx_wrote(properties: dict[str, str], tmp_path: Path) -> None:
    assert read_metadata(write(tmp_path / "m.onnx", properties)) == properties


@pytest.mark.parametrize("keep", [1, 30, 300_000, -3])
def test_a_truncated_file_is_said_to_be_none(keep: int, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", {"key": "value"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match=r"m\.onnx: not an ONNX file \(it ends in the middle of a field\)"):
        read_metadata(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        read_metadata(path)
    with pytest.raises(ModelFileError, match="No such file"):
        read_metadata(tmp_path / "missing.onnx")
