"""Manifests in deploy/, rendered as for a cluster."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
KUBECTL = Path(sys.executable).with_name("kubectl")

Manifest = dict[str, Any]
Place = tuple[str | int, ...]

FREE = {"labels", "annotations", "matchLabels", "requests", "limits", "selector", "metadata"}
"""Fields whose keys are free names; in `metadata` and `selector` only some keys are."""


class Strict(yaml.SafeLoader):
    """Loader that rejects repeated keys in a mapping, as kubectl does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return mapping


def read(text: str) -> list[Manifest]:
    return [one for one in yaml.load_all(text, Strict) if one is not None]


def rendered(folder: Path) -> list[Manifest]:
    """Return the objects that `kubectl apply -k` would send."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


@functools.cache
def everything() -> dict[str, Manifest]:
    """Return all manifests, by their file or folder and their kind."""
    others = {DEPLOY / "compose", DEPLOY / "ray"}  # files of Compose and Ray
    files = [path for path in sorted(DEPLOY.rglob("*.yaml")) if path.parent.parent.name != "kubernetes" and path.parent not in others]
    found = {f"{path.relative_to(DEPLOY)} {one['kind']}": one for path in files for one in read(path.read_text(encoding="utf-8"))}
    for folder in ("base", "gpu"):
        found.update({f"kubernetes/{folder} {one['kind']}": one for one in rendered(DEPLOY / "kubernetes" / folder)})
    (scaled,) = read((DEPLOY / "kubernetes/autoscaling/scaledobject.yaml").read_text(encoding="utf-8"))
    return {**found, "kubernetes/autoscaling ScaledObject": scaled}


def keys(manifest: Any, place: Place = ()) -> Iterator[Place]:
    """Return the path of every key whose name the schema defines."""
    if isinstance(manifest, list):
        for number, one in enumerate(manifest):
            yield from keys(one, (*place, number))
    elif isinstance(manifest, dict):
        for key, value in manifest.items():
            if not _is_free(place):
                yield (*place, key)
            yield from keys(value, (*place, key))


def _is_free(place: Place) -> bool:
    if not place or place[-1] not in FREE:
        return False
    if place[-1] == "metadata":
        return "triggers" in place
    return place[-1] != "selector" or place == ("spec", "selector")


def misspelt(manifest: Manifest, place: Place) -> Manifest:
    """Return a copy with one key misspelt."""
    changed = copy.deepcopy(manifest)
    at: Any = changed
    for step in place[:-1]:
        at = at[step]
    key = str(place[-1])
    at[key[:-1] + ("x" if key[-1] != "x" else "y")] = at.pop(place[-1])
    return changed


def pod_spec(manifest: Manifest) -> Manifest | None:
    """Return the pod specification of an object that runs pods with named containers."""
    spec: Manifest = manifest.get("spec", {})
    if manifest["kind"] == "Pod":
        return spec
    if manifest["kind"] == "InferenceService":
        return spec["predictor"] if "containers" in spec["predictor"] else None
    template: Manifest | None = spec.get("template")
    return None if template is None else template["spec"]


def servers() -> dict[str, Manifest]:
    """Return the pods that run our server, by their manifest."""
    return {
        name: pod
        for name, one in everything().items()
        if (pod := pod_spec(one)) is not None
        and pod["containers"][0]["image"].startswith("tlcli-serve")
        and "command" not in pod["containers"][0]
    }


def environment(pod: Manifest) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
