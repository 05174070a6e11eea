"""docs/deploying.md: what can be run is run, as it stands there; what it names is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers.deploy.manifests import DEPLOY, environment, everything, read, rendered, servers
from tests.helpers.service.toy_model import ToyModel
from tlcli.exports.triton_config import BATCHING_FILE, CONFIG_FILE, MAX_BATCH_SIZE
from tlcli.service import ServerSettings, in_background
from tlcli.service.settings.server_settings import SETTINGS
from tlcli.service.settings.sources import configure

ROOT = DEPLOY.parent
PAGE = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
BLOCKS = [(match[1], match[2]) for match in re.finditer(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
LINES = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]


def blocks(language: str) -> list[str]:
    return [block for one, block in BLOCKS if one == language]


def test_the_readme_leads_here() -> None:
    assert "(docs/deploying.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_it_names_is_there() -> None:
    named = set(re.findall(r"deploy/[\w./-]*\w", PAGE))
    assert len(named) >= 10
    for path in named:
        assert (ROOT / path).exists(), path


def test_its_parts_are_found() -> None:
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in PAGE.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("kubectl")])
def test_kubectl_is_given_what_is_there(line: str) -> None:
    """All but the cluster: files are read, folders rendered, objects named that the manifests make."""
    words = shlex.split(line)
    made = {f"{one['kind']}/{one['metadata']['name']}".lower() for one in everything().values()} | {
        "deployment/tlcli-predictor"
    }  # KServe's
    for flag, value in pairwise(words):
        if flag == "-k" and value != ".":
            assert rendered(ROOT / value)
        elif flag == "-f" and value.startswith("deploy"):
            assert read((ROOT / value).read_text(encoding="utf-8"))
    for word in words:
        if re.fullmatch(r"(deployment|pod|job|inferenceservice)/\S+", word):
            assert word in made
        if found := re.fullmatch(r"([\w-]+):/models/", word):
            assert f"pod/{found[1]}" in made


def test_the_kustomization_is_rendered(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(DEPLOY)
    (block,) = blocks("yaml")
    (tmp_path / "kustomization.yaml").write_text(block)
    found = {one["kind"]: one for one in rendered(tmp_path)}
    assert found.keys() == {"Deployment", "PersistentVolumeClaim", "PodDisruptionBudget", "ScaledObject", "Service"}
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example/tlcli-serve:")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_client_is_answered(tmp_path: Path) -> None:
    (block,) = blocks("python")
    ToyModel.make(seed=1).save(tmp_path / "toy/1/model.onnx", "toy")
    with in_background(ServerSettings(models=tmp_path, port=0)) as port:
        code = block.replace("dns:///tlcli:8001", f"dns:///127.0.0.1:{port}")
        assert code != block
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["1"]), done.stderr  # SERVING


def test_settings_and_figures_are_those_of_the_manifests() -> None:
    for name in ("pre_stop_s", "grace_s", "max_connection_age_s", "model_control"):
        assert f"`{name}" in PAGE
        assert name in SETTINGS
    told = configure({}, environment(servers()["kubernetes/base Deployment"])).settings
    assert f"`pre_stop_s` ({told.pre_stop_s:g} s)" in PAGE
    assert f"`grace_s` ({told.grace_s:g} s)" in PAGE
    assert told.max_connection_age_s == 60
    assert "once a minute" in " ".join(PAGE.split())
    assert f"up to {MAX_BATCH_SIZE} images" in PAGE
    assert f"`{CONFIG_FILE}`" in PAGE
    assert f"`{BATCHING_FILE}`" in PAGE
    behavior = everything()["kubernetes/autoscaling ScaledObject"]["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"] == {"stabilizationWindowSeconds": 300, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}]}
