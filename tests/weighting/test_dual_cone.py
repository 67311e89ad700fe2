"""UPGrad and DualProj: projections onto the dual cone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


def projected(rows: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Weights w >= u of least |J^T w|, by non-negative least squares over w - u."""
    return u + scipy.optimize.nnls(rows.T, -rows.T @ u)[0]


@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e24])
@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_dual_cone_methods_solve_their_program(k: int, seed: int, scale: float) -> None:
    rows = gradients(k, k + 2, seed)
    gramian = rows @ rows.T * scale
    J = rows.numpy()
    mean = np.full(k, 1 / k)
    each = sum(projected(J, row) for row in np.diag(mean))
    options = {"regularization": 1e-12}
    found = weigh(create("upgrad", **options), gramian)
    torch.testing.assert_close(found, torch.from_numpy(each), rtol=1e-6, atol=1e-8)
    found = weigh(create("dualproj", **options), gramian)
    torch.testing.assert_close(found, torch.from_numpy(projected(J, mean)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
@pytest.mark.parametrize("seed", range(3))
def test_dual_cone_methods_do_not_conflict(name: str, seed: int) -> None:
    rows = gradients(4, 6, seed)
    gramian = rows @ rows.T
    found = weigh(name, gramian)
    assert (rows @ (found @ rows) >= -1e-3 * gramian.diagonal()).all()


def test_upgrad_by_hand() -> None:
    # g_1 = (1, 1), g_2 = (-1, 0). g_1 becomes (0, 1) = g_1 + g_2; g_2 becomes (-1/2, 1/2) =
    # g_2 + g_1 / 2. Their mean: ((1 + 1/2) g_1 + (1 + 1) g_2) / 2.
    found = weigh("upgrad", [[2.0, -1.0], [-1.0, 1.0]])
    torch.testing.assert_close(found, tensor(0.75, 1.0), rtol=0.0, atol=1e-3)


def test_dualproj_by_hand() -> None:
    # g_1 = (4, 0), g_2 = (-1, 1): the mean (3/2, 1/2) has product -1 with g_2 of squared norm 2;
    # adding g_2 / 2 makes it (1, 1).
    found = weigh("dualproj", [[16.0, -4.0], [-4.0, 2.0]])
    torch.testing.assert_close(found, tensor(0.5, 1.0), rtol=0.0, atol=2e-3)
    # No conflict: the mean.
    found = weigh("dualproj", [[16.0, 1.0], [1.0, 2.0]])
    torch.testing.assert_close(found, tensor(0.5, 0.5), **EXACT)
