"""The model repository: names, versions, and the file for a path from the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.contract.model.repository_layout import find_model_file, is_model_name, model_names, require_model_name, versions


def put(repository: Path, *places: str) -> None:
    for place in places:
        (repository / place).parent.mkdir(parents=True, exist_ok=True)
        (repository / place).write_bytes(b"")


@pytest.mark.parametrize("name", ["cats", "cats-vs-dogs", "resnet50.a1_in1k", "7", "a" * 128])
def test_names(name: str) -> None:
    assert is_model_name(name)
    assert require_model_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../etc", "a/b", "-flag", ".hidden", "_a", "a b", "a\n", "ä", "a" * 129, "a\0"])
def test_what_is_no_name(name: str) -> None:
    assert not is_model_name(name)
    with pytest.raises(SettingsError, match="is not a model name: expected letters, digits"):
        require_model_name(name)


def test_versions_are_numbers_in_numeric_order(tmp_path: Path) -> None:
    put(tmp_path, "m/10/model.onnx", "m/9/model.onnx", "m/1/model.onnx", "m/0/model.onnx", "m/03/model.onnx", "m/x/model.onnx")
    put(tmp_path, "m/2/other.onnx", "m/-1/model.onnx", "m/config.pbtxt", "m/²/model.onnx")
    assert versions(tmp_path / "m") == [1, 9, 10]
    assert versions(tmp_path / "absent") == []
    assert versions(tmp_path / "m" / "config.pbtxt") == []


def test_models_are_folders_with_a_version(tmp_path: Path) -> None:
    put(tmp_path, "b/1/model.onnx", "a/2/model.onnx", "empty/readme", ".hidden/1/model.onnx", "file")
    assert model_names(tmp_path) == ["a", "b"]
    with pytest.raises(NotFoundError, match=r"absent: no such folder: give the model repository with --models"):
        model_names(tmp_path / "absent")


def test_a_model_is_a_file_a_version_or_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "m/2/model.onnx", "m/11/model.onnx", "loose.onnx")
    assert find_model_file(tmp_path / "m") == tmp_path / "m/11/model.onnx"
    assert find_model_file(tmp_path / "m" / "2") == tmp_path / "m/2/model.onnx"
    assert find_model_file(tmp_path / "loose.onnx") == tmp_path / "loose.onnx"
    with pytest.raises(NotFoundError, match=r"a model repository: give one of its models: .*/m"):
        find_model_file(tmp_path)
