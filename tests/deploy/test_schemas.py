"""Every manifest is valid by its schema, and any misspelt key is found. Needs neither a cluster nor a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers import HELPERS
from tests.helpers.deploy.manifests import DEPLOY, KUBECTL, Manifest, everything, keys, misspelt, pod_spec, read

OLDEST, NEWEST = "1.30", "1.37"
"""Versions of Kubernetes whose schemas are checked."""

CUSTOM = ("InferenceService", "ScaledObject")
KSERVE = Path(sys.prefix) / "kserve/bin/python"
needs_kserve = pytest.mark.skipif(not KSERVE.exists(), reason=f"no {KSERVE}: make kserve")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[MGTP]|[KMGTP]i)?")

ALL = everything()
BUILT_IN = {name: one for name, one in ALL.items() if one["kind"] not in CUSTOM}
CUSTOM_ONES = {name: one for name, one in ALL.items() if one["kind"] in CUSTOM}


def problems(custom: list[Manifest]) -> list[str]:
    script = HELPERS / "deploy/custom_resources.py"
    done = subprocess.run([KSERVE, script], input=json.dumps(custom), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_nothing_is_left_out() -> None:
    assert {one["kind"] for one in ALL.values()} == {
        *CUSTOM, "Deployment", "Job", "PersistentVolumeClaim", "Pod", "PodDisruptionBudget", "Service",
    }  # fmt: skip


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", BUILT_IN)
def test_kubernetes_takes_it(name: str, version: str) -> None:
    kubernetes_validate.validate(BUILT_IN[name], version, strict=True)


@pytest.mark.parametrize("name", BUILT_IN)
def test_kubernetes_refuses_any_misspelt_key(name: str) -> None:
    places = list(keys(BUILT_IN[name]))
    assert len(places) > 5
    for place in places:
        with pytest.raises((kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError, KeyError)):
            kubernetes_validate.validate(misspelt(BUILT_IN[name], place), NEWEST, strict=True)


@needs_kserve
def test_the_custom_resources_definitions_take_them() -> None:
    assert problems(list(CUSTOM_ONES.values())) == [""] * len(CUSTOM_ONES)


@needs_kserve
def test_they_refuse_any_misspelt_key() -> None:
    changed = [(name, place, misspelt(one, place)) for name, one in CUSTOM_ONES.items() for place in keys(one)]
    assert len(changed) > 100
    for (name, place, _), problem in zip(changed, problems([one for _, _, one in changed]), strict=True):
        assert problem, (name, place)


def test_what_a_predictor_says_of_its_pod_is_a_pods() -> None:
    """KServe's models do not check the values of a pod's fields, which Kubernetes does."""
    pod = pod_spec(ALL["kserve/tlcli.yaml InferenceService"])
    assert pod is not None
    spec = {key: value for key, value in pod.items() if key not in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")}
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}, NEWEST, strict=True)


def test_the_triggers_are_keda_s() -> None:
    """KEDA's schema does not cover the parameters of triggers."""
    spec = ALL["kubernetes/autoscaling ScaledObject"]["spec"]
    assert {one["type"]: set(one["metadata"]) for one in spec["triggers"]} == {
        "prometheus": {"serverAddress", "query", "threshold"},
        "cpu": {"value"},
    }
    assert all(isinstance(value, str) for one in spec["triggers"] for value in one["metadata"].values())


def quantities(manifest: Any, below: bool = False) -> list[Any]:
    if isinstance(manifest, list):
        return [value for one in manifest for value in quantities(one)]
    if not isinstance(manifest, dict):
        return [manifest] if below else []
    return [value for key, one in manifest.items() for value in quantities(one, below or key in ("requests", "limits", "sizeLimit"))]


@pytest.mark.parametrize("name", ALL)
def test_quantities_are_quantities(name: str) -> None:
    """The schema allows any text for them."""
    assert all(isinstance(one, str) and QUANTITY.fullmatch(one) for one in quantities(ALL[name])), quantities(ALL[name])


def test_kustomize_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resource: []\n")
    done = subprocess.run([KUBECTL, "kustomize", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "resource" in done.stderr


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="twice"):
        read("a: 1\nb: {c: 1, c: 2}\n")


def test_every_file_is_read_so() -> None:
    for path in DEPLOY.rglob("*.yaml"):
        assert read(path.read_text(encoding="utf-8")), path
