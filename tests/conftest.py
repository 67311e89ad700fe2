"""Settings that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from placement import DEVICE


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _device() -> Iterator[None]:
    if DEVICE.type == "cpu":
        yield
        return
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
