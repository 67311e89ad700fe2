"""pcd: values worked out by hand, and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torchjd import aggregation

from ntkmtl import Balancer
from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


def test_pcd_by_hand() -> None:
    # Orthogonal units, tau = 3/4: d = (1, 3/4), rescaled from 5/4 to 1: (4/5, 3/5).
    options = {"tau": 0.75, "epsilon": 0.0}
    found = weigh(create("pcd", **options), torch.eye(2))
    torch.testing.assert_close(found, tensor(0.8, 0.6), **EXACT)
    # Gradients of norms 2 and 3: the same direction of units, of norm 2: (2/2, 2/3) times that.
    found = weigh(create("pcd", **options), torch.diag(tensor(4.0, 9.0)))
    torch.testing.assert_close(found, tensor(0.8, 0.4), **EXACT)
    # The other way round, where the second is primary.
    found = weigh(create("pcd", primary=1, **options), torch.diag(tensor(4.0, 9.0)))
    torch.testing.assert_close(found, tensor(0.9, 0.8), **EXACT)
    # Cosine 3/4 already: the primary gradient alone.
    found = weigh(create("pcd", **options), [[1.0, 0.8], [0.8, 1.0]])
    torch.testing.assert_close(found, tensor(1.0, 0.0), **EXACT)
    # No direction serves two opposite gradients: the primary gradient is left.
    found = weigh(create("pcd", **options), [[1, 0, 0], [0, 1, -1], [0, -1, 1]])
    torch.testing.assert_close(found, tensor(1.0, 0.0, 0.0), **EXACT)
    # The step is as long as the primary gradient.
    assert weigh("pcd", torch.diag(tensor(0.0, 1.0))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("tau", [0.02, 0.5])
def test_pcd_equals_torchjd(k: int, tau: float) -> None:
    ours = create("pcd", tau=tau, beta=0.9, epsilon=0.0)
    theirs = aggregation.PCDWeighting(tau=tau, beta=0.9, eps=0.0)
    for seed in range(6):
        rows = gradients(k, 10, seed) * torch.arange(1, k + 1)[:, None]
        found = weigh(ours, rows @ rows.T)
        torch.testing.assert_close(found, theirs(rows @ rows.T), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_pcd_is_the_nearest_direction_that_serves_all(seed: int) -> None:
    tau = 0.3
    rows = gradients(4, 6, seed)
    units = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    best = scipy.optimize.minimize(
        lambda d: ((d - units[0]) ** 2).sum() / 2,
        units.sum(axis=0),
        jac=lambda d: d - units[0],
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda d: units[1:] @ d - tau},
        options={"ftol": 1e-15, "maxiter": 500},
    ).x
    expected = torch.from_numpy(best / np.linalg.norm(best)) * rows[0].norm()
    found = weigh(create("pcd", tau=tau, epsilon=0.0), rows @ rows.T) @ rows
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_pcd_tasks_without_labels() -> None:
    weighting = create("pcd", tau=0.75, beta=0.5, epsilon=0.0)
    weigh(weighting, torch.diag(tensor(1.0, 4.0, 9.0)))
    # The primary task is missing: task 1 takes its place. Debiased averages of equal numbers are
    # these numbers, so units are as before.
    found = weigh(weighting, torch.diag(tensor(4.0, 9.0)), tasks=torch.tensor([1, 2]))
    torch.testing.assert_close(found, tensor(0.8, 0.4), **EXACT)
    state = weighting.state_dict()
    # beta = 1/2: averages (1/2) 1, (3/4) 4, (3/4) 9.
    torch.testing.assert_close(state["average"], tensor(0.5, 3.0, 6.75), **EXACT)
    assert state["updates"].tolist() == [1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="primary=3, but there are 3 tasks"):
        Balancer("pcd", tasks=3, primary=3)
