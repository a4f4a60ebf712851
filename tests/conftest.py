"""Fixtures for every kind of test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("plimsoll", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plimsoll")  # how fast examples are drawn is the machine's affair, not the test's

os.environ["PLIMSOLL_CACHE"] = "off"  # tests leave nothing in anybody's home, and find nothing there

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured data; where it is absent the test skips and says so."""
    folder = Path(os.environ.get("PLIMSOLL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"measured data not found at {folder}; set PLIMSOLL_DATA to its folder")
    return folder
