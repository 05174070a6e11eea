"""The settings of a server from a TOML file, the environment and flags: flags go before the environment, that before the file."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.text_file import read_text
from tlcli.service.settings.field import Setting, Value
from tlcli.service.settings.server_settings import SETTINGS, ServerSettings

# By hand and not with pydantic-settings: it names neither the file nor the flag that a wrong value came from.

PREFIX = "TLCLI_SERVE_"
"""Of the environment variables."""

CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Names the file, where no flag does."""

ARGUMENT = "models"
"""The setting that needs no flag."""

_MAX_FILE_BYTES = 1024 * 1024

_BY_NAME = {one.name: one for one in SETTINGS}
_BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True)
class Given:
    """A value that somebody gave.

    source: the flag, the variable or the file it came from.
    """

    value: Value
    source: str


@dataclass(frozen=True)
class Config:
    """The settings, and by name what was given of them; the rest is as it is by default."""

    settings: ServerSettings
    given: Mapping[str, Given]


def variable(setting: Setting) -> str:
    """Its environment variable."""
    return PREFIX + setting.name.upper()


def flag(setting: Setting) -> str:
    """Its flag; or the argument of the command, for the one setting that is given so."""
    return ARGUMENT.upper() if setting.name == ARGUMENT else "--" + setting.name.replace("_", "-")


def configure(flags: Mapping[str, str | bool | Path], environment: Mapping[str, str], file: Path | None = None) -> Config:
    """Put the settings together.

    Args:
        flags: by the setting's name, those that were given.
        environment: variables that begin with `PREFIX`; others are left alone, empty ones count as not set.
        file: TOML; a table's name is put before its keys, so `certificate` in `[tls]` is `tls_certificate`.

    Raises:
        SettingsError: an unknown key or variable, a value of a wrong type or outside its range, values that contradict each
            other, or a file that cannot be read.
    """
    named = environment.get(CONFIG_VARIABLE)
    if file is None and named:
        file = Path(named)
    given: dict[str, Given] = {}
    if file is not None:
        given.update(_from_file(file))
    given.update(_from_environment(environment))
    for name, value in flags.items():
        setting = _BY_NAME[name]
        given[name] = Given(_checked(setting, value, f"{flag(setting)} {str(value)!r}"), flag(setting))
    return Config(_build(given), given)


def configure_from(table: Mapping[str, Any], source: str, elsewhere: Mapping[str, str]) -> Config:
    """Settings that something else has read, as a TOML file holds them.

    Args:
        table: by key; a table in it puts its name before its keys.
        source: what to call it where something is wrong.
        elsewhere: settings that are not given here, by name, with where they are.

    Raises:
        SettingsError: see `configure`.
    """
    given = _from_table(table, source, elsewhere)
    return Config(_build(given), given)


def to_toml(config: Config) -> str:
    """What `configure` reads back to the same settings, with the source of what was given."""
    lines = ["# Settings of `tlcli serve`, for --config."]
    for setting in SETTINGS:
        value, given = setting.of(config.settings), config.given.get(setting.name)
        source = "" if given is None else f"  # {_printable(given.source)}"
        lines.append(f"# {setting.name} is not set" if value is None else f"{setting.name} = {_write(value)}{source}")
    return "\n".join(lines) + "\n"


def _from_file(path: Path) -> dict[str, Given]:
    try:
        document = tomllib.loads(read_text(path, _MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, which names the line; or a number of thousands of digits
        raise SettingsError(f"{path}: not TOML: {error}") from error
    return _from_table(document, str(path), {})


def _from_table(document: Mapping[str, Any], source: str, elsewhere: Mapping[str, str]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for key, value in _flat(document, ()):
        name = "_".join(key)
        where = f"{source}: {'.'.join(key)}"
        if name not in _BY_NAME:
            raise SettingsError(_unknown(where, name, list(_BY_NAME)))
        if name in elsewhere:
            raise SettingsError(f"{where}: {elsewhere[name]}")
        if name in given:
            raise SettingsError(f"{where}: {name} is given twice: expected it once")
        setting = _BY_NAME[name]
        if setting.kind is Path and isinstance(value, str) and value:
            value = Path(value)
        if problem := setting.problem(value):
            raise SettingsError(f"{where} = {value!r}: {problem}")
        given[name] = Given(value, source)
    return given


def _flat(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, (*above, key))
        else:
            yield (*above, key), value


def _from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    by_variable = {variable(one): one for one in SETTINGS}
    given: dict[str, Given] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or not text:
            continue
        if name not in by_variable:
            raise SettingsError(_unknown(name, name, [*by_variable, CONFIG_VARIABLE]))
        setting = by_variable[name]
        given[setting.name] = Given(_checked(setting, text, f"{name}={text!r}"), name)
    return given


def _checked(setting: Setting, given: str | bool | Path, where: str) -> Value:
    value = _parse(setting.kind, given) if isinstance(given, str) else given
    if problem := setting.problem(value):
        raise SettingsError(f"{where}: {problem}")
    return value


def _parse(kind: type, text: str) -> Value:
    """A text as a value of that kind, or as it is where it is none."""
    if kind is bool:
        return _BOOLS.get(text.lower(), text)
    try:
        parsed: Value = kind(text) if text else text
    except ValueError:
        return text
    return parsed


def _build(given: Mapping[str, Given]) -> ServerSettings:
    arguments: dict[str, Any] = {}
    parts: dict[str, dict[str, Value]] = {}
    for name, one in given.items():
        first, *rest = _BY_NAME[name].path
        if rest:
            parts.setdefault(first, {})[rest[0]] = one.value
        else:
            arguments[first] = one.value
    default = ServerSettings()
    for name, values in parts.items():
        arguments[name] = type(getattr(default, name))(**values)
    return ServerSettings(**arguments)


def _unknown(where: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"{near[0]} is one; " if near else ""
    return f"{where}: no such setting: {advice}`tlcli serve --print-config` lists them"


def _write(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _printable(text: str) -> str:
    """For a comment, which ends with its line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
