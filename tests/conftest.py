"""Fixtures for every kind of test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from plimsoll import _ENGINE

settings.register_profile("plimsoll", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plimsoll")  # how fast examples are drawn is the machine's affair, not the test's

os.environ["PLIMSOLL_CACHE"] = "off"  # tests leave nothing in anybody's home, and find nothing there

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that put something else in place of a part of the engine cannot do so where that is compiled."""
    if _ENGINE != "engine compiled":
        return
    apart = pytest.mark.skip(reason="replaces parts of the engine: `make test` runs it with PLIMSOLL_COMPILED=off")
    for item in items:
        if item.get_closest_marker("interpreted"):
            item.add_marker(apart)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured data; where it is absent the test skips and says so."""
    folder = Path(os.environ.get("PLIMSOLL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"measured data not found at {folder}; set PLIMSOLL_DATA to its folder")
    return folder
