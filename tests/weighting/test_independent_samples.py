"""Products of gradients of different mini-batches."""

from __future__ import annotations

import pytest
import torch

from kernel.oracle import make_case
from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import create
from ntkmtl.weighting._independent import independent_products
from weighting.by_hand import (
    OF_PAIRS,
    close,
    kernel_of_gradients,
    kernel_of_products,
    random,
    tensor,
)


def test_products_of_different_minibatches_only() -> None:
    # Task i, mini-batch u: numbers g = [[1, 2, 4], [3, 5, -1]]. Pairs u != v:
    # task 0: 2 (1 2 + 1 4 + 2 4) / 6 = 14 / 3; task 1: 2 (15 - 3 - 5) / 6 = 7 / 3;
    # between: 1 (5 - 1) + 2 (3 - 1) + 4 (3 + 5) = 40, by 6.
    gradients = tensor([[1.0, 2.0, 4.0], [3.0, 5.0, -1.0]])[:, :, None]
    found = independent_products(kernel_of_gradients(gradients), "modo")
    close(found, [[14 / 3, 40 / 6], [40 / 6, 7 / 3]])


def test_products_count_by_shares_of_samples() -> None:
    # Task 0 has a quarter of its labels in mini-batch 0, task 1 all. Task 0 with itself:
    # both orders of (0, 1), each 1/4 * 3/4. Between: only (task 0 in 1, task 1 in 0).
    # Task 1 with itself has no pair.
    gradients = tensor([[2.0, 6.0], [5.0, 0.0]])[:, :, None]
    kernel = kernel_of_gradients(gradients).with_shares(tensor([[0.25, 0.75], [1.0, 0.0]]))
    close(independent_products(kernel, "modo"), [[12.0, 30.0], [30.0, 0.0]])


def test_products_are_free_of_the_bias_of_a_gramian() -> None:
    # Gradients (1, 0) and (0, 1) with noise of variance 1 in 10 directions, halved batches.
    mean = torch.eye(2, 10, dtype=torch.float64)[:, None]
    draws = mean + random(4000, 2, 2, 10)
    kernels = [kernel_of_gradients(draw) for draw in draws]
    unbiased = torch.stack([independent_products(kernel, "modo") for kernel in kernels]).mean(0)
    biased = torch.stack([kernel.gramian() for kernel in kernels]).mean(0)
    torch.testing.assert_close(unbiased, torch.eye(2, dtype=torch.float64), rtol=0, atol=0.2)
    torch.testing.assert_close(biased.diagonal(), tensor([6.0, 6.0]), rtol=0, atol=0.3)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_there_must_be_pairs(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} multiplies.*set minibatches to 2 or more"):
        create(name)(kernel_of_gradients(random(3, 1, 4)))
    with pytest.raises(ValueError, match="diagonal blocks only"):
        create(name)(ExtendedNTK(blocks=torch.ones(3, 2, 2)))
    case = make_case()
    z = case.features()
    balancer = Balancer(name, source="representation", pooling="blockwise")
    with pytest.raises(ValueError, match="set pooling='pooled' or 'kernel', or source='exact'"):
        balancer.backward(case.losses(z), features=z)
    assert all(p.grad is None for p in case.parameters)
    assert Balancer(name, source="representation").pooling == "pooled"
    with pytest.raises(ValueError, match="no ema"):
        Balancer(name, ema=0.5)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_task_without_labels_keeps_its_share(name: str) -> None:
    weighting, pair = create(name), create(name)
    weighting.prepare(3, torch.device("cpu"))
    two = torch.tensor([0, 2])
    for seed in range(3):
        gradients = random(2, 2, 5, seed=seed)
        found = weighting(kernel_of_gradients(gradients), tasks=two)
        close(found, pair(kernel_of_gradients(gradients)))
    state = weighting.state_dict()["weights"]
    assert float(state[1]) == 1 / 3
    assert float(state.sum()) == pytest.approx(1.0)
    # When it comes back all three go on from there.
    start = create(name)
    start.load_state_dict({"weights": state.clone()})
    three = kernel_of_gradients(random(3, 2, 5, seed=9))
    close(weighting(three), start(three))


def test_a_task_whose_share_is_zero_may_come_alone() -> None:
    modo = create("modo", gamma=1.0, rho=0.0)
    modo(kernel_of_products([[10.0, 0.0], [0.0, 1.0]]))
    assert modo.state_dict()["weights"].tolist() == [0.0, 1.0]
    alone = modo(kernel_of_products([[10.0]]), tasks=torch.tensor([0]))
    assert alone.tolist() == [1.0]
    found = modo(kernel_of_products([[0.0, 0.0], [0.0, 0.0]]))
    close(found, [1 / 3, 2 / 3])
