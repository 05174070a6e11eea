"""Podman, with a storage and settings of its own in one folder: for `deploy/check_container.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any


class CheckError(Exception):
    """Something is not as it should be."""


class Podman:
    """Builds images and runs containers. What it keeps lies in `folder`.

    folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "containers.conf"
        # No limits of its own: who may not raise limits could run nothing. Files instead of journald, which may not run.
        settings.write_text(
            '[containers]\ndefault_ulimits = []\nlog_driver = "k8s-file"\n[engine]\nevents_logger = "file"\n', encoding="utf-8"
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(settings), "TMPDIR": str(folder)}
        driver = os.environ.get("STORAGE_DRIVER", "overlay")
        places = [f"--root={folder / 'images'}", f"--runroot={folder / 'run'}", f"--storage-driver={driver}"]
        # crun, podman's own choice, knows no control groups of both versions at once.
        self._command = ["podman", *places, "--runtime=runc", "--cgroup-manager=cgroupfs"]
        self._containers: list[str] = []

    def __call__(self, *arguments: str, may_fail: bool = False) -> str:
        """What podman prints.

        Raises:
            CheckError: it ended with anything but 0, and `may_fail` is not set.
        """
        done = subprocess.run(
            [*self._command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment
        )
        if done.returncode and not may_fail:
            raise CheckError(f"podman {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Is it in the storage?"""
        return image in self("images", "--format={{.Repository}}:{{.Tag}}").split()

    def about(self, kind: str, name: str) -> Any:
        """What is known of an `image` or a `container`."""
        return json.loads(self(kind, "inspect", name))[0]

    def start(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a container in the background; its id. Its health check waits to be asked, since systemd may not run."""
        container = self("run", "--detach", "--no-healthcheck", *options, image, *command).splitlines()[-1]
        self._containers.append(container)
        return container

    def inside(self, image: str, program: str, *options: str) -> str:
        """What a Python program prints in a container of its own."""
        return self("run", "--rm", "--no-healthcheck", "--network=none", *options, "--entrypoint=python3", image, "-c", program)

    def close(self, keep: bool) -> None:
        """Remove the containers; and the images with all the storage, unless they are to be kept."""
        for container in self._containers:
            self("rm", "--force", "--time=0", container, may_fail=True)
        if not keep:
            self("rmi", "--all", "--force", may_fail=True)
            shutil.rmtree(self.folder, ignore_errors=True)
