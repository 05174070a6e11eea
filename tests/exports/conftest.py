"""Exported files that several tests look at."""

from __future__ import annotations

import pytest

from tests.exports.networks import Exports


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Files by network, layers and methods, each exported when it is first asked for."""
    return Exports(tmp_path_factory.mktemp("exported"))
