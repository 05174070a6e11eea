"""What pip is to install before the project itself, so that an image's packages change only when they do: for the Dockerfile.

    python deploy/requirements.py [--cpu] EXTRA...

Prints the requirements of pyproject.toml, those of the extras included, a line each. With --cpu, the ONNX Runtime that knows no GPU
stands in for the one that does.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str], cpu: bool) -> list[str]:
    """
    Raises:
        KeyError: an extra that the project does not have.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return [one.replace("onnxruntime-gpu", "onnxruntime") for one in asked] if cpu else asked


if __name__ == "__main__":
    arguments = sys.argv[1:]
    print(*requirements(Path("pyproject.toml"), [one for one in arguments if one != "--cpu"], "--cpu" in arguments), sep="\n")
