from __future__ import annotations

from tests.service.conftest import one_model

__all__ = ["one_model"]
