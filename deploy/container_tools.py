"""Programs that `deploy/check_container.py` needs, and the Debian packages that provide them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

DEBIAN_PACKAGES: Mapping[str, str] = {
    "podman": "podman",
    "conmon": "conmon",
    "runc": "runc",
    "netavark": "netavark",
    "iptables": "iptables",  # netavark calls it to publish ports; if it is missing, the error only names netavark
    "debootstrap": "debootstrap",
}
"""Program to package. Without recommended packages, podman installs neither netavark nor iptables."""

_FOLDERS = (
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/usr/local/libexec/podman",
    "/usr/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/lib/podman",
)
"""Folders that are searched besides $PATH, which lacks podman's helper programs."""


def missing(programs: Sequence[str], path: str | None = None, folders: Sequence[str] = _FOLDERS) -> list[str]:
    """Return the programs that are not installed.

    Args:
        programs: programs in `DEBIAN_PACKAGES`.
        path: folders, separated by colons; None for $PATH.
        folders: folders that are searched after `path`.
    """
    search = os.pathsep.join([os.environ.get("PATH", "") if path is None else path, *folders])
    return [program for program in programs if shutil.which(program, path=search) is None]


def problem(programs: Sequence[str], is_root: bool) -> str | None:
    """Return what to do before the check can run, in one line; None if nothing is missing.

    Args:
        programs: the missing programs, see `missing`.
        is_root: True if the process runs as root.
    """
    if programs:
        packages = " ".join(dict.fromkeys(DEBIAN_PACKAGES[program] for program in programs))
        return f"not installed: {', '.join(programs)}: apt-get install --no-install-recommends {packages}"
    return None if is_root else "running containers as in production needs root: sudo make container-check"
