"""List of the project's requirements for the Dockerfile, which installs them in a layer of their own, before the project.

    python deploy/requirements.py [--cpu] EXTRA...

Prints the requirements in pyproject.toml, including those of the extras, one per line. With --cpu, ONNX Runtime without GPU support
replaces the one with it.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str], cpu: bool) -> list[str]:
    """Return the requirements of a project and some of its extras.

    Args:
        pyproject: path of its pyproject.toml.
        extras: names of the extras.
        cpu: replace onnxruntime-gpu by onnxruntime.

    Raises:
        KeyError: an extra that the project does not have.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    packages = [*project["dependencies"], *(package for extra in extras for package in project["optional-dependencies"][extra])]
    return [package.replace("onnxruntime-gpu", "onnxruntime") for package in packages] if cpu else packages


if __name__ == "__main__":
    arguments = sys.argv[1:]
    extras = [argument for argument in arguments if argument != "--cpu"]
    print(*requirements(Path("pyproject.toml"), extras, cpu="--cpu" in arguments), sep="\n")
