"""Fixtures and profiles shared by all tests."""

import os
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Deadlines measure the machine, not the code.
hypothesis.settings.register_profile("default", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs hardware or software that is not there."""
    missing = {}
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            missing["gpu"] = "no CUDA device"
    if "ROS_DISTRO" not in os.environ:
        missing["ros"] = "no ROS 2 is sourced"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def redkitchen() -> Path:
    """The recording of a real Kinect; see docs/conventions.md for where it is looked for."""
    path = Path(os.environ.get("SEMFIELD_REDKITCHEN", ROOT / "../shared/data/redkitchen"))
    if not path.is_dir():
        pytest.skip("redkitchen is not here; SEMFIELD_REDKITCHEN names its directory")
    return path
