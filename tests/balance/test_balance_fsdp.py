"""Balancing in a custom loop with parameters that FSDP2 shards over two processes."""

from __future__ import annotations

import ddp_worker
import fsdp_worker
import pytest
import torch

import two_processes
from ntkmtl import Balancer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("fsdp")
    two_processes.run(fsdp_worker.main, str(place))
    return place


@pytest.mark.parametrize("layers", [False, True], ids=["at once", "by layer"])
@pytest.mark.parametrize("number", range(len(fsdp_worker.CASES)))
def test_two_processes_equal_one(folder, number, layers):
    method, options = fsdp_worker.CASES[number]
    if "minibatches" in options:
        options = {**options, "minibatches": 2 * options["minibatches"]}
    whole = ddp_worker.run(
        ddp_worker.network(), Balancer(method, **options), slice(0, ddp_worker.BATCH), steps=3
    )
    for rank in range(2):
        found = torch.load(folder / f"{number}-{layers}-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["weights"], whole["weights"], rtol=1e-9, atol=0.0)
        for a, b in zip(found["grads"], whole["grads"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
