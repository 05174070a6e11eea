"""Command lines that reproduce or resume a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.flag_names import flag_of
from tlcli.training.settings.model_arguments import argument_text
from tlcli.training.settings.recipes import RECIPES, Recipe

_ALWAYS = ("backbone", "dataset")
"""Settings that are always included, even at their defaults, because readers look for them first."""

_NEVER = ("output",)
"""Settings that are never included. The output folder already exists, and nothing is overwritten."""

_DECIDING = ("mode", "weights")
"""Settings that determine the other settings of a recipe."""


def finetune_command(asked: Mapping[str, Any]) -> str:
    """Return a shell-quoted `tlcli finetune` command with a flag for every setting that differs from the default or the recipe.

    Args:
        asked: `FinetuneConfig` as a JSON mapping.
    """
    return shlex.join(finetune_words(asked))


def resume_command(run: Path, flags: Sequence[str] = ()) -> str:
    """Return a shell-quoted `tlcli finetune --resume RUN` command in backticks, preceded by `torchrun` if it started this process.

    Args:
        run: run folder.
        flags: additional arguments of the command.
    """
    command = shlex.join(["finetune", "--resume", str(run), *flags])
    world, here = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in os.environ or world == "1":
        return f"`tlcli {command}`"
    if world == here:
        return f"`torchrun --nproc-per-node {here} -m tlcli {command}`"
    return f"on each machine, with torchrun's flags as before, `torchrun ... -m tlcli {command}`"


def finetune_words(asked: Mapping[str, Any]) -> list[str]:
    """Return the arguments of `finetune_command` as a list, without quoting."""
    recipe: Recipe = next((name for name in RECIPES if name == asked.get("recipe")), "default")
    deciding = {name: asked[name] for name in _DECIDING if name in asked}
    configs = FinetuneConfig(), FinetuneConfig.of(recipe), FinetuneConfig.of(recipe, **deciding)
    plain, from_recipe, defaults = (config.model_dump(mode="json") for config in configs)
    defaults |= {"recipe": plain["recipe"], **{name: from_recipe[name] for name in _DECIDING}}
    words = ["tlcli", "finetune"]
    for field, value in asked.items():
        differs = value is not None and value != defaults.get(field)
        if field not in _NEVER and (differs or field in _ALWAYS):
            words += _words(flag_of(field).removeprefix("--"), value)
    return words


def _words(name: str, value: Any) -> list[str]:
    match value:
        case bool():
            return [f"--{name}" if value else f"--no-{name}"]
        case dict():
            return [word for key, item in value.items() for word in (f"--{name}", f"{key}={argument_text(item)}")]
        case list() | tuple():
            return [f"--{name}", ",".join(map(str, value))]
        case _:
            return [f"--{name}", str(value)]
