"""What several tests share: stand-ins, references, small networks and images, servers."""

from pathlib import Path

HELPERS = Path(__file__).parent
