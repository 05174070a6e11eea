"""Wrapper of Podman with its own storage and settings in one folder, for `deploy/check_container.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any


class CheckError(Exception):
    """A failed check."""


class Podman:
    """Podman, for building images and running containers.

    folder: folder of the storage and settings; created if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "containers.conf"
        # No ulimits: without the right to raise limits, no container would start. Log to files, since journald may not run.
        settings.write_text(
            '[containers]\ndefault_ulimits = []\nlog_driver = "k8s-file"\n[engine]\nevents_logger = "file"\n', encoding="utf-8"
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(settings), "TMPDIR": str(folder)}
        driver = os.environ.get("STORAGE_DRIVER", "overlay")
        places = [f"--root={folder / 'images'}", f"--runroot={folder / 'run'}", f"--storage-driver={driver}"]
        # crun, podman's default, does not support control groups of both versions at once.
        self._command = ["podman", *places, "--runtime=runc", "--cgroup-manager=cgroupfs"]
        self._containers: list[str] = []

    def __call__(self, *arguments: str, may_fail: bool = False) -> str:
        """Run podman and return its output.

        Raises:
            CheckError: podman failed, and `may_fail` is not set.
        """
        done = subprocess.run(
            [*self._command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment
        )
        if done.returncode and not may_fail:
            raise CheckError(f"podman {' '.join(arguments)} failed with exit code {done.returncode}:\n{done.stdout}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Check for an image in the storage."""
        return image in self("images", "--format={{.Repository}}:{{.Tag}}").split()

    def about(self, kind: str, name: str) -> Any:
        """Return the inspection result of an `image` or a `container`."""
        return json.loads(self(kind, "inspect", name))[0]

    def start(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a container in the background and return its id.

        Its health check only runs on request, because Podman would schedule it with systemd, which may not run.
        """
        container = self("run", "--detach", "--no-healthcheck", *options, image, *command).splitlines()[-1]
        self._containers.append(container)
        return container

    def inside(self, image: str, program: str, *options: str) -> str:
        """Run a Python program in a new container and return its output."""
        return self("run", "--rm", "--no-healthcheck", "--network=none", *options, "--entrypoint=python3", image, "-c", program)

    def close(self, keep: bool) -> None:
        """Remove the containers and, unless `keep` is set, the images and the storage."""
        for container in self._containers:
            self("rm", "--force", "--time=0", container, may_fail=True)
        if not keep:
            self("rmi", "--all", "--force", may_fail=True)
            shutil.rmtree(self.folder, ignore_errors=True)
