"""Other servers load the model repository as it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.deploy.manifests import DEPLOY, everything
from tests.helpers.deploy.triton_stand_in import stand_in
from tests.helpers.exports.small_networks import LABELS, Exports, blobs
from tlcli.contract.model.repository_layout import versions
from tlcli.exports.triton_config import BATCHING_FILE, CONFIG_FILE, batching_pbtxt, config_pbtxt

ASK = DEPLOY / "kserve/ask_triton.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def repository(exported: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two versions of the model `pets`, as `tlcli export` does."""
    folder = tmp_path_factory.mktemp("repository")
    model = exported("test_resnet", "linear").model
    description = model.description.model_copy(update={"name": "pets"})
    for version in ("1", "2"):
        (folder / "pets" / version).mkdir(parents=True)
        shutil.copy(model.path, folder / "pets" / version)
    (folder / "pets" / BATCHING_FILE).parent.mkdir()
    (folder / "pets" / CONFIG_FILE).write_text(config_pbtxt(description))
    (folder / "pets" / BATCHING_FILE).write_text(batching_pbtxt(description))
    return folder


def test_triton_is_asked_for_what_the_graph_has(repository: Path, exported: Exports, tmp_path: Path) -> None:
    """Run the script in deploy/kserve as a user would; its output equals the graph's."""
    model = exported("test_resnet", "linear").model
    size = model.description.preprocessing
    pixels = blobs(1, size.height, size.width)
    Image.fromarray(pixels[0]).save(tmp_path / "image.png")
    with stand_in(repository) as (address, server):
        done = subprocess.run([sys.executable, ASK, address, "pets", tmp_path / "image.png"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert server.asked == [({"images", "targets", "wanted"}, {"scores", "classes", "gradcam"})]

    scores, classes, maps = model.session.run(["scores", "classes", "gradcam"], {"images": pixels, "targets": np.array([[-1, -2]])})
    assert len(done.stdout.splitlines()) == 2
    for line, class_id, values in zip(done.stdout.splitlines(), classes[0], maps[0], strict=True):
        row, column = np.unravel_index(values.argmax(), values.shape)
        found = re.fullmatch(r"(\S+): (\d\.\d{3}), for what is at row (\d+), column (\d+) of 2 x 3", line)
        assert found, line
        assert found[1] == model.description.labels[class_id]
        assert float(found[2]) == pytest.approx(scores[0, class_id], abs=1e-3)
        assert (int(found[3]), int(found[4])) == (row, column)
    assert len(LABELS) == 5


def test_triton_of_kserve_reads_the_folder_and_the_file() -> None:
    """Triton mounts the same volume as our server, and its version has a recent enough ONNX Runtime."""
    spec = everything()["kserve/triton.yaml InferenceService"]["spec"]["predictor"]["model"]
    assert spec["storageUri"] == "pvc://" + everything()["kubernetes/base PersistentVolumeClaim"]["metadata"]["name"]
    assert (spec["protocolVersion"], [one["name"] for one in spec["ports"]]) == ("grpc-v2", ["h2c"])
    year, month = map(int, re.fullmatch(r"(\d\d)\.(\d\d)-py3", spec["runtimeVersion"]).groups())  # type: ignore[union-attr]
    assert (year, month) >= (25, 3)


def test_openvino_model_server_is_told_where_a_model_is(repository: Path) -> None:
    """OpenVINO Model Server expects a folder of versions, whole numbers from 1 with one model in each; it ignores other names."""
    openvino: Any = pytest.importorskip("openvino")
    listed = json.loads((DEPLOY / "openvino/config.json").read_text(encoding="utf-8"))
    assert listed.keys() == {"model_config_list"}
    for (config,) in (one.values() for one in listed["model_config_list"]):
        assert config.keys() == {"name", "base_path", "model_version_policy"}
        assert config["base_path"] == f"/models/{config['name']}"
        folder = repository / "pets"
        numbered = [path for path in folder.iterdir() if re.fullmatch("[1-9][0-9]*", path.name)]
        assert sorted(int(path.name) for path in numbered) == versions(folder) == [1, 2]
        for path in numbered:
            (file,) = path.iterdir()
            assert file.suffix == ".onnx"
            read = openvino.Core().read_model(str(file))
            assert [(one.any_name, str(one.element_type)) for one in read.inputs] == [("images", "<Type: 'uint8_t'>")]
            assert read.inputs[0].partial_shape.to_string() == "[?,64,96,3]"
