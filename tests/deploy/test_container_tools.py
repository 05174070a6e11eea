"""`make container-check` names all missing programs at once, with the command that installs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.container_tools import DEBIAN_PACKAGES, missing, problem

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("lacking", [(), ("iptables",), ("netavark", "iptables"), tuple(DEBIAN_PACKAGES)])
def test_what_is_missing_is_named_at_once(lacking: tuple[str, ...], tmp_path: Path) -> None:
    for folder in ("bin", "podman"):
        (tmp_path / folder).mkdir()
    for program in DEBIAN_PACKAGES.keys() - set(lacking):
        path = tmp_path / ("podman" if program == "netavark" else "bin") / program
        path.touch()
        path.chmod(0o755)
    found = missing(list(DEBIAN_PACKAGES), str(tmp_path / "bin"), [str(tmp_path / "podman")])
    assert found == list(lacking)
    expected = f"not installed: {', '.join(lacking)}: apt-get install --no-install-recommends {' '.join(lacking)}" if lacking else None
    assert problem(found, is_root=True) == expected


def test_root_is_asked_for_when_all_is_installed() -> None:
    message = problem([], is_root=False)
    assert message is not None
    assert message.startswith("running containers as in production needs root")


def test_the_docs_name_every_package() -> None:
    lines = (ROOT / "docs/containers.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("make container-check  "))
    assert line.rpartition("packages ")[2].split(", ") == list(DEBIAN_PACKAGES.values())
