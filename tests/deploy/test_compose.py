"""docker-compose.yml is valid by the Compose specification's schema, a security linter, and the server's settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tlcli import __version__
from tlcli.contract.errors import SettingsError
from tlcli.service.rest.access_control import AllowedHosts
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.settings.sources import configure

ROOT = Path(__file__).parents[2]
COMPOSE, TLS = ROOT / "docker-compose.yml", ROOT / "deploy/compose/tls.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVERS = ("server", "server-gpu")


def services(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    return found


def image_environment() -> dict[str, str]:
    """Return the server settings that the image sets."""
    return dict(re.findall(r"(TLCLI_SERVE_\w+)=(\S+)", DOCKERFILE))


def settings(service: str, *, tls: bool = False) -> ServerSettings:
    """Return the settings of the server in a container."""
    environment = image_environment() | services(COMPOSE)[service]["environment"]
    if tls:
        environment |= services(TLS)[service]["environment"]
    return configure({}, environment).settings


def seconds(duration: str) -> float:
    """Convert a duration in Compose's format, such as 1m30s, to seconds."""
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def against_the_specification(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("path", [COMPOSE, TLS], ids=lambda path: path.name)
def test_it_is_what_the_specification_allows(path: Path, tmp_path: Path) -> None:
    checked = against_the_specification(path)
    assert checked.returncode == 0, checked.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(path.read_text(encoding="utf-8").replace("environment:", "enviroment:"), encoding="utf-8")
    assert against_the_specification(wrong).returncode == 1


def test_a_security_linter_finds_nothing_but_tags_without_digests(tmp_path: Path) -> None:
    def findings(path: Path) -> set[str]:
        command = [sys.executable, "-m", "compose_lint", "check", "--format", "json", "--fail-on", "low", str(path)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout)["findings"]
        return {one["rule_id"] for one in found}

    assert findings(COMPOSE) == {"CL-0019"}
    open_to_all = tmp_path / "docker-compose.yml"
    open_to_all.write_text(COMPOSE.read_text(encoding="utf-8").replace("127.0.0.1:9090:9090", "9090:9090"), encoding="utf-8")
    assert len(findings(open_to_all)) > 1


@pytest.mark.parametrize("name", services(COMPOSE))
def test_each_container_is_held_in(name: str) -> None:
    service = services(COMPOSE)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert "restart" in service
    assert {"cpus", "memory", "pids"} == service["deploy"]["resources"]["limits"].keys()
    assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+(-cpu)?", service["image"])
    assert all(re.match(r"127\.0\.0\.1:|\$\{TLCLI_LISTEN:-127\.0\.0\.1\}:", port) for port in service.get("ports", ()))


def test_a_cpu_by_default_and_a_gpu_where_asked_for() -> None:
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text(encoding="utf-8").splitlines()
    profiles = {name: service.get("profiles", []) for name, service in services(COMPOSE).items()}
    assert [name for name, ones in profiles.items() if not ones or "cpu" in ones] == ["server", "prometheus", "grafana"]
    assert [name for name, ones in profiles.items() if not ones or "gpu" in ones] == ["server-gpu", "prometheus", "grafana"]
    with_gpu = {name for name, service in services(COMPOSE).items() if "reservations" in service["deploy"]["resources"]}
    assert with_gpu == {"server-gpu", "trainer-gpu"}
    for name in with_gpu:
        (device,) = services(COMPOSE)[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
    assert settings("server").device == "auto"
    assert settings("server-gpu").device == "cuda"


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("tls", [False, True])
def test_a_stop_leaves_the_server_the_time_that_it_takes(name: str, tls: bool) -> None:
    told = settings(name, tls=tls)
    assert seconds(services(COMPOSE)[name]["stop_grace_period"]) >= told.pre_stop_s + told.grace_s + 1  # and a second to close
    assert "stop_signal" not in services(COMPOSE)[name]
    assert "STOPSIGNAL" not in DOCKERFILE


def test_the_image_alone_refuses_to_serve_unencrypted() -> None:
    with pytest.raises(
        SettingsError, match=r"^host 0\.0\.0\.0: requests would travel unencrypted beyond this machine: set tls_certificate"
    ):
        configure({}, image_environment())


@pytest.mark.parametrize("name", SERVERS)
def test_beyond_this_machine_it_has_tls_and_tokens(name: str) -> None:
    told = settings(name, tls=True)
    assert told.tls_certificate is not None
    assert told.tokens_file is not None
    (mount,) = services(TLS)[name]["volumes"]
    assert mount["target"] == str(told.tls_certificate.parent) == str(told.tokens_file.parent)
    assert mount["read_only"] is True
    assert services(TLS)[name]["environment"]["TLCLI_HEALTH_TLS_CA"].startswith(f"{mount['target']}/")


@pytest.mark.parametrize("name", SERVERS)
def test_names_that_http_requests_may_ask_for(name: str) -> None:
    """The server listens on every address of its container, and accepts any host name unless names are set."""

    def hosts(**variables: str) -> AllowedHosts:
        told = settings(name, tls="TLCLI_NAME" in variables)
        assert told.allowed_hosts
        names = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda found: variables.get(found[1]) or found[2], told.allowed_hosts)
        return AllowedHosts(names, told.host)

    for host in ("localhost:8000", "127.0.0.1:8000", "192.0.2.7:8000", "server:8000"):
        assert hosts().includes(host)
        assert hosts(TLCLI_NAME="models.example").includes(host)
    assert not hosts().includes("evil.example:8000")
    assert not hosts(TLCLI_NAME="models.example").includes("evil.example:8000")
    assert hosts(TLCLI_NAME="models.example").includes("models.example:8000")
    assert hosts(TLCLI_ALLOWED_HOSTS="server,other.example").includes("other.example:8000")


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_published_is_what_the_server_listens_at(name: str) -> None:
    told = settings(name)
    assert [int(port.rsplit(":", 1)[1]) for port in services(COMPOSE)[name]["ports"]] == [told.port, told.http_port]
    (mount,) = services(COMPOSE)[name]["volumes"]
    assert mount["target"] == str(told.models)
    assert mount["read_only"] is True


def test_prometheus_asks_the_server_and_grafana_asks_prometheus() -> None:
    (job,) = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert {target} == {f"server:{settings(name).metrics_port}" for name in SERVERS}
    assert services(COMPOSE)["server-gpu"]["networks"]["default"]["aliases"] == ["server"]
    (source,) = yaml.safe_load((ROOT / "deploy/compose/grafana/datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((ROOT / "deploy/compose/grafana/dashboards/dashboards.yml").read_text(encoding="utf-8"))["providers"]
    (mount,) = services(COMPOSE)["grafana"]["volumes"]
    assert provider["options"]["path"] == f"{mount.split(':')[1]}/dashboards"


def test_what_is_mounted_from_the_project_is_there() -> None:
    mounts = [mount for service in services(COMPOSE).values() for mount in service.get("volumes", ()) if str(mount).startswith("./")]
    assert len(mounts) == 2
    for mount in mounts:
        assert (ROOT / mount.split(":")[0]).exists(), mount
        assert mount.endswith(":ro")


def test_images_of_ours_have_the_projects_version_and_a_stage_each() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    ours = {name: service for name, service in services(COMPOSE).items() if "build" in service}
    assert set(ours) == {"server", "server-gpu", "trainer", "trainer-gpu"}
    for name, service in ours.items():
        assert service["build"]["target"] in stages
        assert service["image"].split(":")[1].removesuffix("-cpu") == __version__, name
    assert services(COMPOSE)["server"]["build"]["args"] == {"CUDA": "0"}
    assert "args" not in services(COMPOSE)["server-gpu"]["build"]


def test_the_documentation_names_every_variable_and_its_default() -> None:
    document = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in document.splitlines() if line.startswith("| `TLCLI_"))
    found = dict(re.findall(r"\$\{(TLCLI_\w+):-([^}]+)\}", COMPOSE.read_text(encoding="utf-8")))
    assert len(found) >= 8
    for name, default in found.items():
        assert f"`{name}`" in table, name
        assert default in table, f"{name}: {default}"
    for name in re.findall(r"\$\{(TLCLI_\w+)", TLS.read_text(encoding="utf-8")):
        assert name in document, name
