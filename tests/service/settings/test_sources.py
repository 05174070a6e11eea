"""Tests of settings from a file, the environment and flags: every setting from every source, and the message for every mistake."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tlcli.cli.commands.serve import command
from tlcli.contract.errors import SettingsError
from tlcli.service import ServerSettings
from tlcli.service.settings.server_settings import SETTINGS, bound, choices_of, kind_of
from tlcli.service.settings.sources import Config, configure, flag, to_toml, variable

DOCUMENT = Path(__file__).parents[3] / "docs/serving.md"


def other(name: str) -> Any:
    """Return a value that is not the default, and is allowed together with the others."""
    known = {"host": "::1", "port": 9, "http_port": 10, "insecure": True, "versions": "latest:2"}
    known |= {"allowed_hosts": "models.example", "metrics_port": 11, "metrics_host": "::1", "otel_endpoint": "http://localhost:4317"}
    if name in known:
        return known[name]
    field = SETTINGS[name]
    kind = kind_of(field)
    if choices := choices_of(field):
        return next(choice for choice in choices if choice != field.default)
    if kind is Path:
        return Path(f'folder/{name} é"\\.pem')
    return kind(field.default + kind(1.5))


OTHERS = {name: other(name) for name in SETTINGS} | {"device": "cuda", "model_control": "poll"}  # --tf32 and --poll-s need them


def toml(folder: Path, text: str, name: str = "serve.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def values(settings: ServerSettings) -> dict[str, Any]:
    return dict(settings)


def run(*arguments: str, **environment: str) -> str:
    answer = CliRunner().invoke(command, [*arguments, "--print-config"], env=environment)
    if answer.exception is not None:
        raise answer.exception
    return answer.stdout


def test_every_setting_is_explained_and_bounded() -> None:
    for name, field in SETTINGS.items():
        assert (field.description or "").endswith("."), name
        if kind_of(field) in (int, float):
            assert bound(field, "ge") is not None, name


def test_every_setting_is_a_key_a_variable_and_a_flag(tmp_path: Path) -> None:
    assert all(OTHERS[name] != field.default for name, field in SETTINGS.items())
    by_variable = configure({}, {variable(name): str(OTHERS[name]) for name in SETTINGS})
    by_flag = configure({name: str(OTHERS[name]) for name in SETTINGS}, {})
    by_file = configure({}, {}, toml(tmp_path, to_toml(by_variable)))
    for config, source in ((by_variable, variable), (by_flag, flag), (by_file, lambda _: str(tmp_path / "serve.toml"))):
        assert values(config.settings) == OTHERS
        assert {name: override.source for name, override in config.overrides.items()} == {name: source(name) for name in SETTINGS}


def test_the_command_takes_every_flag() -> None:
    arguments = [
        word
        for name, field in SETTINGS.items()
        for word in (
            [str(OTHERS[name])] if name == "models" else [flag(name)] if kind_of(field) is bool else [flag(name), str(OTHERS[name])]
        )
    ]
    assert tomllib.loads(run(*arguments)) == {name: str(value) if isinstance(value, Path) else value for name, value in OTHERS.items()}


def test_flags_go_before_the_environment_that_before_the_file_that_before_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = 1\nthreads = 2\nmax_maps = 3\n")
    config = configure({"port": "7"}, {"TLCLI_SERVE_PORT": "5", "TLCLI_SERVE_THREADS": "6"}, file)
    settings = config.settings
    assert (settings.port, settings.threads, settings.max_maps, settings.max_batch_size) == (7, 6, 3, 8)
    lines = to_toml(config).splitlines()
    assert "port = 7  # --port" in lines
    assert "threads = 6  # TLCLI_SERVE_THREADS" in lines
    assert f"max_maps = 3  # {file}" in lines
    assert "max_batch_size = 8" in lines


def test_what_is_printed_reads_back_to_the_same_settings(tmp_path: Path) -> None:
    for config in (Config(ServerSettings(), {}), configure(OTHERS, {}), configure({"grace_s": "1e-30"}, {})):
        assert configure({}, {}, toml(tmp_path, to_toml(config))).settings == config.settings


def test_the_command_prints_what_it_reads(tmp_path: Path) -> None:
    file = toml(tmp_path, "host = '::1'\n[limits]\nmax_pixels = 99\n[tls]\ncertificate = 'a.pem'\nkey = 'a.key'\n")
    printed = run("somewhere", "--no-insecure", TLCLI_SERVE_CONFIG=str(file), TLCLI_SERVE_INSECURE="yes", TLCLI_SERVE_THREADS="")
    settings = configure({}, {}, toml(tmp_path, printed, "printed.toml")).settings
    assert settings == ServerSettings(
        models=Path("somewhere"),
        host="::1",
        limits_max_pixels=99,
        tls_certificate=Path("a.pem"),
        tls_key=Path("a.key"),
    )
    assert 'models = "somewhere"  # MODELS' in printed
    assert "insecure = false  # --insecure" in printed
    assert run("--config", str(file), TLCLI_SERVE_CONFIG="nosuch.toml").count(f"# {file}") == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot = 1", r"prot: no such setting: did you mean port\? `tlcli serve --print-config` lists them"),
        ("[limits]\nmax_byte = 1", r"limits\.max_byte: no such setting: did you mean limits_max_bytes\?"),
        ("zzz = 1", "zzz: no such setting: `tlcli serve"),
        ("port = '1'", "port = '1': expected a whole number$"),
        ("port = 1.0", r"port = 1\.0: expected a whole number$"),
        ("port = true", "port = True: expected a whole number$"),
        ("port = 70000", "port = 70000: expected 1 to 65535, or 0 for a free port$"),
        ("grace_s = 'long'", "grace_s = 'long': expected a number$"),
        ("grace_s = -1", "grace_s = -1: expected 0 to 1,000,000$"),
        ("grace_s = nan", "grace_s = nan: expected 0 to 1,000,000$"),
        ("insecure = 1", "insecure = 1: expected true or false$"),
        ("device = 'tpu'", "device = 'tpu': expected auto, cpu or cuda$"),
        ("host = ''", "host = '': expected a text$"),
        ("models = 1", "models = 1: expected a path$"),
        ("tls_key = ''", "tls_key = '': expected a path$"),
        ("limits = 1", "limits: no such setting"),
        ("limits_max_bytes = 5000000000", "limits_max_bytes = 5000000000: expected 1 to 1,073,741,824$"),
        ("tls_key = 'a'\n[tls]\nkey = 'b'", r"tls\.key: tls_key is set twice: remove one of them"),
        ("port = 1\nport 2", r"not valid TOML: .*line 2"),
        ("port = " + "9" * 5000, "not valid TOML: "),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, expected: str, tmp_path: Path) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(SettingsError, match=expected) as caught:
        configure({}, {}, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nosuch\.toml: No such file or directory"):
        configure({}, {}, tmp_path / "nosuch.toml")
    with pytest.raises(SettingsError, match="Is a directory"):
        configure({}, {"TLCLI_SERVE_CONFIG": str(tmp_path)})
    file = tmp_path / "latin.toml"
    file.write_bytes(b"# \xe9")
    with pytest.raises(SettingsError, match=r"latin\.toml: line 1: byte 2 \(0xe9\) is not UTF-8"):
        configure({}, {}, file)
    file.write_bytes("# made by an editor that writes a mark\nport = 8002\n".encode("utf-8-sig"))
    assert configure({}, {}, file).settings.port == 8002


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PRT", "1", r"^TLCLI_SERVE_PRT: no such setting: did you mean TLCLI_SERVE_PORT\?"),
        ("port", "1", "^TLCLI_SERVE_port: no such setting"),
        ("PORT", "tcp://10.0.0.1:8001", "^TLCLI_SERVE_PORT='tcp://10.0.0.1:8001': expected a whole number$"),
        ("MAX_MAPS", "0", "^TLCLI_SERVE_MAX_MAPS='0': expected 1 to 1,000,000$"),
        ("INSECURE", "maybe", "^TLCLI_SERVE_INSECURE='maybe': expected true or false$"),
    ],
)
def test_a_mistake_in_the_environment_is_named(name: str, text: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        configure({}, {f"TLCLI_SERVE_{name}": text, "TLCLI_SERVER": "not ours", "PORT": "nor this"})


def test_a_mistake_in_a_flag_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^--max-batch-size '0': expected 1 to 1,000,000$"):
        run("--max-batch-size", "0")
    with pytest.raises(SettingsError, match=r"^--grace-s '': expected a number$"):
        run("--grace-s", "")
    with pytest.raises(SettingsError, match=r"^host 0\.0\.0\.0: requests would travel unencrypted"):
        run("--host", "0.0.0.0")


def test_the_documentation_names_every_setting() -> None:
    rows = [line.split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    documented = {row[1].strip().strip("`"): (row[2].strip().strip("`"), row[3].strip()) for row in rows if len(row) == 5}
    assert documented == {
        name: ("" if field.default is None else str(field.default).lower(), field.description) for name, field in SETTINGS.items()
    }


def test_the_file_in_the_documentation_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    settings = configure({}, {}, toml(tmp_path, example)).settings
    assert settings.tls_key == Path("/run/secrets/server.key")
    assert settings.limits.max_bytes == 8388608
