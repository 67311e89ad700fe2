"""Balancing in two processes under DDP gives the results of one process."""

from __future__ import annotations

import ddp_worker
import pytest
import torch

import two_processes
from ntkmtl import Balancer
from ntkmtl.weighting import accepted_options, create, names, spec

pytestmark = pytest.mark.integration


def same(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=0.0, equal_nan=True)


# n mini-batches in each of two processes are 2 n in one: (options of two, options of one).
CASES = [
    ("ls", {}, {}),
    ("si", {}, {}),
    ("uw", {}, {}),
    ("dwa", {}, {}),
    ("ntkmtl-sr", {"minibatches": 2}, {"minibatches": 4}),
    ("ntkmtl-sr", {"minibatches": 2, "pooling": "blockwise"}, {"minibatches": 4}),
    ("ntkmtl-tk", {"minibatches": 2}, {"minibatches": 4}),
    ("ntkmtl-auto", {"minibatches": 2}, {"minibatches": 4}),
    ("ntkmtl-log", {"minibatches": 2}, {"minibatches": 4}),
    ("ntkmtl-sr", {"minibatches": 2, "log_losses": True}, {"minibatches": 4}),
    ("nash-mtl", {"source": "representation", "log_losses": True}, {}),
    ("nash-mtl", {"source": "exact", "log_losses": True, "weight_heads": True}, {}),
    ("ntkmtl-x", {"minibatches": 2, "weight_heads": True}, {"minibatches": 4}),
    (
        "ntkmtl-x",
        {"minibatches": 2, "weight_heads": True, "statistic": "aligned"},
        {"minibatches": 4},
    ),
    ("ntkmtl", {"minibatches": 2, "weight_heads": True}, {"minibatches": 4}),
    ("nash-mtl", {"source": "representation"}, {}),
    ("nash-mtl", {"source": "exact"}, {}),
    ("mgda", {"source": "exact", "weight_heads": True}, {}),
    ("ntkmtl-sr", {"minibatches": 2, "ema": 0.5, "every": 2}, {"minibatches": 4}),
]


# Every other method as it comes. Those that work on the gradients entry by entry, or on the heads,
# say that they need a single process.
TRIED = {method for method, _, _ in CASES}
RANDOM_NAMES = {name for name in names() if "seed" in accepted_options(name)}
ALONE = [
    name for name in names() if spec(name).requires == "jacobian" or create(name).has_head_objective
]
CASES += [
    (
        name,
        {} if spec(name).requires == "losses" else {"weight_heads": True},
        {"minibatches": 2 * Balancer(name).options.minibatches}
        if spec(name).requires == "kernel"
        else {},
    )
    for name in names()
    if name not in TRIED | RANDOM_NAMES | {"stl", *ALONE}
]
MISSING = ["ls", "ntkmtl-sr", "ntkmtl", "nash-mtl"]
RANDOM = [
    (name, {} if spec(name).requires == "losses" else {"weight_heads": True})
    for name in sorted(RANDOM_NAMES - set(ALONE))
]
ALL = [
    *((method, options, None) for method, options, _ in CASES),
    *((method, {"weight_heads": True}, 2) for method in MISSING),
    *((method, options, None) for method, options in RANDOM),
    *((method, {}, None) for method in ALONE),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of both processes, by the position of the case in ALL."""
    folder = tmp_path_factory.mktemp("ddp")
    two_processes.run(ddp_worker.main, str(folder), ALL)
    return [
        [torch.load(folder / f"{number}-{rank}.pt", weights_only=True) for rank in range(2)]
        for number in range(len(ALL))
    ]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{m}-{o}" for m, o, _ in CASES])
def test_two_processes_equal_one(results, number):
    method, options, single = CASES[number]
    first, second = results[number]
    assert torch.equal(first["weights"], second["weights"])
    whole = ddp_worker.run(
        ddp_worker.network(),
        Balancer(method, **{**options, **single}),
        slice(0, ddp_worker.BATCH),
    )
    same(first["weights"], whole["weights"])
    if whole["eigenvalues"] is not None:
        same(first["eigenvalues"], whole["eigenvalues"])
    for a, b in zip(first["grads"], whole["grads"], strict=True):
        same(a, b, 1e-8)


@pytest.mark.parametrize("number", range(len(MISSING)), ids=MISSING)
def test_a_task_without_labels_in_one_process(results, number):
    first, second = results[len(CASES) + number]
    assert torch.equal(first["weights"], second["weights"])
    assert bool((first["weights"] > 0).all())
    for a, b in zip(first["grads"], second["grads"], strict=True):
        same(a, b)


@pytest.mark.parametrize("number", range(len(RANDOM)), ids=[m for m, _ in RANDOM])
def test_random_methods_agree(results, number):
    first, second = results[len(CASES) + len(MISSING) + number]
    assert torch.equal(first["weights"], second["weights"])


@pytest.mark.parametrize("number", range(len(ALONE)), ids=ALONE)
def test_methods_for_a_single_process_raise(results, number):
    for found in results[len(ALL) - len(ALONE) + number]:
        assert "works in a single process only" in found["error"]
        assert all(g is None for g in found["grads"])


def test_every_method_was_tried():
    assert {method for method, _, _ in ALL} == set(names()) - {"stl"}
