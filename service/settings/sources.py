"""Server settings from a TOML file, the environment and flags. Flags override environment variables, and those override the file."""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.text_file import read_text
from tlcli.service.settings.server_settings import SETTINGS, ServerSettings, problem

# pydantic-settings is not used because its errors name neither the file nor the flag that an invalid value came from.

PREFIX = "TLCLI_SERVE_"
"""Prefix of the environment variables that hold settings."""

CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Environment variable that holds the path of the settings file. A flag overrides it."""

ARGUMENT = "models"
"""Setting that is a positional argument of the command instead of a flag."""

_MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Override:
    """Value that overrides a default, and the flag, variable or file that it came from."""

    value: Any
    source: str


@dataclass(frozen=True)
class Config:
    """Server settings, together with the values that override defaults, by name."""

    settings: ServerSettings
    overrides: Mapping[str, Override]


def variable(name: str) -> str:
    """Return the name of a setting's environment variable."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """Return the flag of a setting or, for `ARGUMENT`, the name of the command's argument."""
    return ARGUMENT.upper() if name == ARGUMENT else "--" + name.replace("_", "-")


def configure(flags: Mapping[str, str | bool | Path], environment: Mapping[str, str], file: Path | None = None) -> Config:
    """Merge the settings from all sources.

    Args:
        flags: values of flags, by name of the setting.
        environment: environment variables. Variables without `PREFIX` are ignored, and empty variables count as not set.
        file: path of a TOML file. A table's name is a prefix of its keys: `certificate` in `[tls]` sets `tls_certificate`. None: the path
            in `CONFIG_VARIABLE`, if it is set.

    Raises:
        SettingsError: a key or variable is unknown, a value has the wrong type or is out of range, values contradict each
            other, or the file cannot be read.
    """
    named = environment.get(CONFIG_VARIABLE)
    if file is None and named:
        file = Path(named)
    overrides: dict[str, Override] = {}
    if file is not None:
        overrides.update(_from_file(file))
    overrides.update(_from_environment(environment))
    for name, value in flags.items():
        overrides[name] = Override(_parse(name, value, f"{flag(name)} {str(value)!r}"), flag(name))
    return _build(overrides)


def configure_from(table: Mapping[str, Any], source: str, elsewhere: Mapping[str, str]) -> Config:
    """Build settings from a table that another program has parsed.

    Args:
        table: values by key. A nested table's name is a prefix of its keys.
        source: name of the table in error messages.
        elsewhere: settings that the table must not contain, each with an error message that names the alternative.

    Raises:
        SettingsError: see `configure`.
    """
    return _build(_from_table(table, source, elsewhere))


def to_toml(config: Config) -> str:
    """Format settings as a TOML file from which `configure` reads the same settings. Comments name the source of each override."""
    lines = ["# Settings of `tlcli serve`, for --config."]
    for name, value in config.settings:
        source = f"  # {_printable(config.overrides[name].source)}" if name in config.overrides else ""
        lines.append(f"# {name} is not set" if value is None else f"{name} = {_write(value)}{source}")
    return "\n".join(lines) + "\n"


def _from_file(path: Path) -> dict[str, Override]:
    try:
        document = tomllib.loads(read_text(path, _MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, which names the line; or a number of thousands of digits
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    return _from_table(document, str(path), {})


def _from_table(document: Mapping[str, Any], source: str, elsewhere: Mapping[str, str]) -> dict[str, Override]:
    overrides: dict[str, Override] = {}
    for key, value in _flatten(document, ()):
        name = "_".join(key)
        where = f"{source}: {'.'.join(key)}"
        if name not in SETTINGS:
            raise SettingsError(_unknown(where, name, list(SETTINGS)))
        if name in elsewhere:
            raise SettingsError(f"{where}: {elsewhere[name]}")
        if name in overrides:
            raise SettingsError(f"{where}: {name} is set twice: remove one of them")
        overrides[name] = Override(_validate(name, value, f"{where} = {value!r}"), source)
    return overrides


def _flatten(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, (*above, key))
        else:
            yield (*above, key), value


def _from_environment(environment: Mapping[str, str]) -> dict[str, Override]:
    names = {variable(name): name for name in SETTINGS}
    overrides: dict[str, Override] = {}
    for key, text in environment.items():
        if not key.startswith(PREFIX) or key == CONFIG_VARIABLE or not text:
            continue
        if key not in names:
            raise SettingsError(_unknown(key, key, [*names, CONFIG_VARIABLE]))
        overrides[names[key]] = Override(_parse(names[key], text, f"{key}={text!r}"), key)
    return overrides


def _parse(name: str, value: str | bool | Path, where: str) -> Any:
    """Convert the text of a flag or variable to the type of its setting."""
    return _validate(name, value, where, strict=False)


def _validate(name: str, value: object, where: str, strict: bool | None = None) -> Any:
    try:
        return _adapter(name).validate_python(value, strict=strict)
    except ValidationError as error:
        raise SettingsError(f"{where}: {problem(SETTINGS[name], error)}") from error


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = SETTINGS[name]
    return TypeAdapter(Annotated[field.annotation, *field.metadata, None], config=ServerSettings.model_config)  # type: ignore[arg-type]  # made at run time


def _build(overrides: Mapping[str, Override]) -> Config:
    return Config(ServerSettings(**{name: override.value for name, override in overrides.items()}), overrides)


def _unknown(where: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    return f"{where}: no such setting: {advice}`tlcli serve --print-config` lists them"


def _write(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _printable(text: str) -> str:
    """Replace unprintable characters, such as line breaks, which would end a TOML comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
