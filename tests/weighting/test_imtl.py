"""imtl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


def test_imtl_by_hand() -> None:
    # Scales (1, 1/3) make orthogonal gradients of norms 1 and 3 equally long: alpha = (1/2, 1/2),
    # so w = (1/2 * 1, 1/2 * 1/3).
    weighting = create("imtl")
    weighting.prepare(2, torch.device("cpu"))
    state = weighting.state_dict()
    state["values"] = tensor(0.0, math.log(1 / 3))
    weighting.load_state_dict(state)
    found = weigh(weighting, torch.diag(tensor(1.0, 9.0)))
    torch.testing.assert_close(found, tensor(1 / 2, 1 / 6), **EXACT)
    with pytest.raises(ValueError, match="negative"):
        weigh(weighting, torch.eye(2), losses=tensor(-1.0, 1.0))


def test_imtl_has_equal_projections_on_scaled_gradients_and_learns_the_scales() -> None:
    weighting = create("imtl", learning_rate=0.1)
    scales = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scales], lr=0.1)
    for seed in range(10):
        rows = gradients(3, 6, seed)
        losses = rows[:, 0].square() + 0.1
        weights = weigh(weighting, rows @ rows.T, losses=losses)
        # The paper's closed form, as a linear system: projections equal, alpha summing to 1.
        scaled = scales.detach().exp()[:, None] * rows
        units = scaled / scaled.norm(dim=1, keepdim=True)
        system = torch.cat([(units[:1] - units[1:]) @ scaled.T, torch.ones(1, 3).double()])
        alpha = torch.linalg.solve(system, tensor(0.0, 0.0, 1.0))
        torch.testing.assert_close(weights, alpha * scales.detach().exp(), rtol=1e-7, atol=1e-9)
        optimizer.zero_grad()
        (scales.exp() * losses - scales).sum().backward()
        optimizer.step()
