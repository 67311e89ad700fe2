"""NTKMTL-X: statistics worked out by hand, and the equation that the weights solve."""

from __future__ import annotations

import math

import pytest
import torch

from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import create
from ntkmtl.weighting._ntkmtl_x import NTKMTLX, STATISTICS, task_matrix

EXACT = {"rtol": 1e-9, "atol": 1e-12}


def kernel() -> ExtendedNTK:
    """Two tasks of two mini-batches, whose blocks have eigenvalues 4 and 2, and 9 and 0."""
    one = torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64)  # top (1, 1) / sqrt(2)
    two = torch.tensor([[0.0, 0.0], [0.0, 9.0]], dtype=torch.float64)  # top (0, 1)
    across = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    values = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    values[0, :, 0], values[1, :, 1] = one, two
    values[0, :, 1], values[1, :, 0] = across, across.T
    return ExtendedNTK(values)


@pytest.mark.parametrize(
    ("statistic", "diagonal"),
    [
        ("max", [4.0, 9.0]),
        ("trace", [3.0, 4.5]),
        # (16 + 4) / 6 and 81 / 9.
        ("weighted", [20.0 / 6.0, 9.0]),
    ],
)
def test_statistics_of_blocks(statistic: str, diagonal: list[float]) -> None:
    found = task_matrix(kernel(), statistic)  # type: ignore[arg-type]
    torch.testing.assert_close(
        found, torch.diag(torch.tensor(diagonal, dtype=torch.float64)), **EXACT
    )
    # Blocks between tasks are not looked at.
    alone = ExtendedNTK(blocks=kernel().blocks)
    torch.testing.assert_close(task_matrix(alone, statistic), found, **EXACT)  # type: ignore[arg-type]


def test_aligned_cross_terms() -> None:
    # (1, 1) / sqrt(2) times [[0, 1], [0, 2]] times (0, 1).
    cross = 3.0 / math.sqrt(2.0)
    torch.testing.assert_close(
        task_matrix(kernel(), "aligned"),
        torch.tensor([[4.0, cross], [cross, 9.0]], dtype=torch.float64),
        **EXACT,
    )


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_weights_solve_the_equation(statistic: str, alpha: float) -> None:
    weights = NTKMTLX(statistic, alpha)(kernel())  # type: ignore[arg-type]
    matrix = task_matrix(kernel(), statistic)  # type: ignore[arg-type]
    scale = matrix.diagonal().mean() ** (alpha / (alpha + 1))
    w = weights / scale
    torch.testing.assert_close(matrix @ w, w ** (-1 / alpha), **EXACT)
    if statistic != "aligned":
        mean = matrix.diagonal().mean()
        expected = (mean / matrix.diagonal()) ** (alpha / (alpha + 1))
        torch.testing.assert_close(weights, expected, **EXACT)


def test_the_default_is_eq_15_with_exponent_two_thirds() -> None:
    torch.testing.assert_close(
        create("ntkmtl-x")(kernel()), create("ntkmtl", exponent=2 / 3)(kernel()), **EXACT
    )
    # With n = 1 there is one eigenvalue, and alpha 1 is NTKMTL.
    one = ExtendedNTK(kernel().values[:, :1, :, :1] + torch.eye(2).double()[:, None, :, None])
    for statistic in ("max", "trace", "weighted"):
        torch.testing.assert_close(
            create("ntkmtl-x", statistic=statistic, alpha=1.0)(one), create("ntkmtl")(one), **EXACT
        )


def test_cross_terms_with_one_mini_batch_are_fairgrad_and_nash() -> None:
    rows = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gramian = ExtendedNTK((rows @ rows.T).reshape(3, 1, 3, 1))
    for alpha, method, options in ((2.0, "fairgrad", {"alpha": 2.0}), (1.0, "nash-mtl", {})):
        found = NTKMTLX("aligned", alpha)(gramian)
        other = create(method, **options)(gramian)
        # They scale otherwise.
        torch.testing.assert_close(found / found.sum(), other / other.sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("options", "blocks"), [({}, False), ({"statistic": "aligned"}, True)])
def test_blocks_between_tasks_are_made_only_for_cross_terms(
    options: dict[str, str], blocks: bool
) -> None:
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
    x, y = torch.randn(8, 3), torch.randn(2, 8, 1)
    z = trunk(x)
    losses = [(head(z) - t).square().mean() for head, t in zip(heads, y, strict=True)]
    out = Balancer("ntkmtl-x", **options).backward(losses, features=z)
    assert out.kernel is not None
    assert out.kernel.has_all_blocks is blocks
    assert out.kernel.minibatches == 4


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="statistic must be one of aligned, max, trace, weighted"):
        NTKMTLX("mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha"):
        NTKMTLX(alpha=0.0)
