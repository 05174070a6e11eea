from __future__ import annotations

import os

from tests.conftest import REPOSITORY
from tests.service.conftest import one_model

__all__ = ["one_model"]

# Read when Ray is imported, and by the processes that it starts.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112  # it kills processes where others have filled the machine
os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
