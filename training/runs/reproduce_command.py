"""The commands that repeat a run, and resume it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.recipes import RECIPES, Recipe

_ALWAYS = ("backbone", "dataset")
"""Told even where they are the defaults: they are what a reader looks for."""

_NEVER = ("output",)
"""The folder is in use: nothing is overwritten."""

_DECIDING = ("mode", "weights")
"""What a recipe's other settings depend on."""


def finetune_command(asked: Mapping[str, Any]) -> str:
    """`tlcli finetune` with a flag for every setting that is neither the default nor the recipe's, quoted for a shell.

    Args:
        asked: a `FinetuneConfig` as JSON holds it.
    """
    return shlex.join(finetune_words(asked))


def resume_command(run: Path, flags: Sequence[str] = ()) -> str:
    """`tlcli finetune --resume RUN`, quoted for a shell, in backticks; with `torchrun` before it where that has started this process.

    Args:
        run: its folder.
        flags: that follow.
    """
    command = shlex.join(["finetune", "--resume", str(run), *flags])
    world, here = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in os.environ or world == "1":
        return f"`tlcli {command}`"
    if world == here:
        return f"`torchrun --nproc-per-node {here} -m tlcli {command}`"
    return f"on each machine, with torchrun's flags as before, `torchrun ... -m tlcli {command}`"


def finetune_words(asked: Mapping[str, Any]) -> list[str]:
    """The words of `finetune_command`, not quoted."""
    recipe: Recipe = next((one for one in RECIPES if one == asked.get("recipe")), "default")
    deciding = {name: asked[name] for name in _DECIDING if name in asked}
    plain, of_recipe, unasked = (
        one.model_dump(mode="json") for one in (FinetuneConfig(), FinetuneConfig.of(recipe), FinetuneConfig.of(recipe, **deciding))
    )
    unasked |= {"recipe": plain["recipe"], **{name: of_recipe[name] for name in _DECIDING}}
    words = ["tlcli", "finetune"]
    for field, value in asked.items():
        given = value is not None and value != unasked.get(field)
        if field not in _NEVER and (given or field in _ALWAYS):
            words += _words(field.replace("_", "-"), value)
    return words


def _words(name: str, value: Any) -> list[str]:
    match value:
        case bool():
            return [f"--{name}" if value else f"--no-{name}"]
        case dict():
            return [word for key, one in value.items() for word in (f"--{name}", f"{key}={one}")]
        case list() | tuple():
            return [f"--{name}", ",".join(map(str, value))]
        case _:
            return [f"--{name}", str(value)]
