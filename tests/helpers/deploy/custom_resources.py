"""Check custom resources against models generated from their definitions; run by the interpreter of `make kserve`.

Reads a list of manifests as JSON, and prints a list of as many texts: what is wrong with each, or nothing.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from typing import Any

import cloudcoil.pydantic
import kserve.models
import kubernetes.client
import pydantic

cloudcoil.pydantic.BaseModel.model_config["extra"] = "forbid"  # before the models are created, which inherit it

from cloudcoil.models.keda.v1alpha1 import ScaledObject  # noqa: E402

PRIMITIVES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool, "object": object}


def problem(manifest: dict[str, Any]) -> str:
    if manifest.get("kind") == "ScaledObject":
        try:
            ScaledObject.model_validate(manifest)
        except pydantic.ValidationError as error:
            return str(error)
        return ""
    return against(manifest, "V1beta1InferenceService", "")


def against(value: Any, kind: str, where: str) -> str:
    """Return the first mismatch with the types that the client's generated classes declare (`openapi_types`), or an empty text."""
    if found := re.fullmatch(r"[lL]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            return f"{where}: not a list"
        return first(against(one, found[1], f"{where}[{number}]") for number, one in enumerate(value))
    if found := re.fullmatch(r"dict\(str, (.*)\)|Dict\[str, (.*)\]", kind):
        if not isinstance(value, dict):
            return f"{where}: not a mapping"
        return first(against(one, found[1] or found[2], f"{where}.{key}") for key, one in value.items())
    if kind in PRIMITIVES:
        right = isinstance(value, PRIMITIVES[kind]) and not (isinstance(value, bool) and kind in ("int", "float"))
        return "" if right else f"{where}: {value!r} is no {kind}"
    if kind in ("datetime", "ResourceQuantity", "IntOrString"):
        return "" if isinstance(value, str | int | float | datetime.datetime) else f"{where}: {value!r} is no {kind}"
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind, None)
    if model is None:
        return f"{where}: no model {kind}"
    if not isinstance(value, dict):
        return f"{where}: not a {kind}"
    kinds = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
    if unknown := value.keys() - kinds.keys():
        return f"{where}: {kind} has no {', '.join(sorted(unknown))}"
    return first(against(one, kinds[key], f"{where}.{key}") for key, one in value.items())


def first(problems: Any) -> str:
    return next(filter(None, problems), "")


json.dump([problem(one) for one in json.load(sys.stdin)], sys.stdout)
