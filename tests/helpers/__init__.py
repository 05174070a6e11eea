"""Helpers shared by several tests: stand-ins, references, small networks and images, servers."""

from pathlib import Path

HELPERS = Path(__file__).parent
