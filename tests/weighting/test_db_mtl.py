"""db-mtl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kernel.oracle import flat_gradient, make_case
from ntkmtl import Balancer, NonFiniteError
from ntkmtl.weighting import create, spec
from weighting.by_hand import (
    PATTERNS,
    close,
    random,
    tensor,
)


def test_db_mtl_by_hand() -> None:
    db = create("db-mtl", beta=0.5)
    db.prepare(2, torch.device("cpu"))
    # Averages (1.5, 2) and (0, .5), of lengths 2.5 and .5.
    combined, weights = db.combine(tensor([[3.0, 4.0], [0.0, 1.0]]))
    close(weights, [1.0, 5.0])
    close(combined, [1.5, 4.5])
    # (.75, 1) and (3, 4): 1.25 and 5.
    combined, weights = db.combine(tensor([[0.0, 0.0], [6.0, 7.5]]))
    close(weights, [4.0, 1.0])
    close(combined, [6.0, 8.0])
    # Task 1 alone; its average becomes zero, and adds nothing.
    combined, weights = db.combine(tensor([[-3.0, -4.0]]), None, torch.tensor([1]))
    assert weights.tolist() == [1.0]
    close(combined, [0.0, 0.0])
    # Task 0 goes on from (.75, 1): (3, 4) and (0, 1).
    combined, weights = db.combine(tensor([[5.25, 7.0], [0.0, 2.0]]))
    close(weights, [1.0, 5.0])
    close(combined, [3.0, 9.0])


def test_db_mtl_decay_by_hand() -> None:
    # beta / t = .5, .25, with t counted for each task: 4 -> 2, 3.5; then .5 / 3.
    db = create("db-mtl", beta=0.5, beta_sigma=1.0)
    four = tensor([[4.0]])
    assert db.combine(four)[0].tolist() == [2.0]
    assert db.combine(four)[0].tolist() == [3.5]
    close(db.combine(four)[0], [3.5 / 6 + 4.0 * 5 / 6])


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.9])
def test_db_mtl_is_its_formula(beta: float, sigma: float) -> None:
    db = create("db-mtl", beta=beta, beta_sigma=sigma)
    db.prepare(3, torch.device("cpu"))
    average, updates = np.zeros((3, 5)), np.zeros(3)
    for number, here in enumerate(PATTERNS):
        jacobian = random(len(here), 5, seed=number) * 10.0 ** random(len(here), 1, seed=number)
        for row, i in zip(jacobian.numpy(), here, strict=True):
            updates[i] += 1
            average[i] = row + beta / updates[i] ** sigma * (average[i] - row)
        lengths = [math.sqrt((average[i] ** 2).sum()) for i in here]
        expected = sum(
            max(lengths) / length * average[i] for length, i in zip(lengths, here, strict=True)
        )
        combined, weights = db.combine(jacobian, None, torch.tensor(here))
        close(combined, expected)
        close(weights, [max(lengths) / length for length in lengths])


def test_db_mtl_balances_log_losses_unless_told_otherwise() -> None:
    assert spec("db-mtl").defaults["log_losses"] is True
    for log_losses in (None, True, False):
        case, fresh = make_case(), make_case()
        balancer = Balancer("db-mtl", log_losses=log_losses)
        assert balancer.log_losses == (log_losses is not False)
        z = case.features()
        out = balancer.backward(case.losses(z), features=z)
        losses = fresh.losses(fresh.features())
        slopes = torch.stack([loss.detach() for loss in losses]) ** -1
        if balancer.log_losses:
            losses = [loss.log() for loss in losses]
        else:
            slopes = torch.ones(3)
        rows = torch.stack([flat_gradient(loss, fresh.shared) for loss in losses])
        lengths = rows.norm(dim=1)
        close(out.weights, lengths.max() / lengths * slopes)
        found = torch.cat([p.grad.flatten() for p in case.shared if p.grad is not None])
        close(found, 0.1 * (lengths.max() / lengths) @ rows)
        # Heads follow the loss that is balanced, unweighted.
        grads = torch.autograd.grad(sum(losses), list(fresh.heads.parameters()))
        for p, g in zip(case.heads.parameters(), grads, strict=True):
            close(p.grad, g)
    assert not Balancer("moco").log_losses


def test_a_loss_that_is_not_finite_has_no_logarithm() -> None:
    for value in (math.inf, math.nan, -math.inf):
        case = make_case()
        z = case.features()
        losses = case.losses(z)
        losses[1] = losses[1] * value
        with pytest.raises(NonFiniteError, match="loss of task 1"):
            Balancer("db-mtl").backward(losses, features=z)
        assert all(p.grad is None for p in case.parameters)
    case = make_case()
    z = case.features()
    losses = [loss.float() for loss in case.losses(z)]
    losses[1] = losses[1] * math.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert Balancer("db-mtl").backward(losses, features=z, scaler=scaler).skipped
