"""Programs that `deploy/check_container.py` needs, with the Debian packages that have them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

DEBIAN_PACKAGES: Mapping[str, str] = {
    "podman": "podman",
    "conmon": "conmon",
    "runc": "runc",
    "netavark": "netavark",
    "iptables": "iptables",  # netavark calls it to publish ports, and names itself where it is missing
    "debootstrap": "debootstrap",
}
"""Program to package. Without recommended packages, podman brings neither netavark nor iptables."""

_FOLDERS = (
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/usr/local/libexec/podman",
    "/usr/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/lib/podman",
)
"""Folders of programs besides $PATH; podman's own helpers are not on it."""


def missing(programs: Sequence[str], path: str | None = None, folders: Sequence[str] = _FOLDERS) -> list[str]:
    """The programs that are not installed.

    Args:
        programs: of `DEBIAN_PACKAGES`.
        path: folders with colons between them; None for $PATH.
        folders: searched after `path`.
    """
    search = os.pathsep.join([os.environ.get("PATH", "") if path is None else path, *folders])
    return [program for program in programs if shutil.which(program, path=search) is None]


def problem(programs: Sequence[str], is_root: bool) -> str | None:
    """Return what to do before the check can run, in one line; None if nothing is missing.

    Args:
        programs: not installed, see `missing`.
        is_root: the process runs as root.
    """
    if programs:
        packages = " ".join(dict.fromkeys(DEBIAN_PACKAGES[program] for program in programs))
        return f"not installed: {', '.join(programs)}: apt-get install --no-install-recommends {packages}"
    return None if is_root else "root is needed to run containers as they are run in production: sudo make container-check"
