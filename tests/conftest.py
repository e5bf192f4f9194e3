"""Settings of the whole suite: one thread, a fixed seed for each test, quick and repeatable hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings
from zoo.libraries import declare_vision_operators

declare_vision_operators()  # before anything asks whether torchvision can be imported
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
