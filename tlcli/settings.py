"""Flags to a `FinetuneConfig`: what was not given keeps the config's own default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contract.errors import SettingsError

if TYPE_CHECKING:
    from training.config import FinetuneConfig


def finetune_config(**flags: Any) -> FinetuneConfig:
    """Raises: SettingsError: a flag with a value that it cannot have; the message names the flag."""
    from pydantic import ValidationError

    from training.config import FinetuneConfig

    try:
        return FinetuneConfig(**{key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "the settings"
        raise SettingsError(f"{flag}: {first['msg'].removeprefix('Value error, ')}") from error
