"""Gradients that depend on each other, in float32."""

from __future__ import annotations

import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    kernel_of,
    tensor,
    weigh,
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["imtl-g", "imtl", "aligned-mtl", "config"])
def test_what_rounding_leaves_of_a_dependence_is_no_direction(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 500, dtype=torch.float64, generator=generator)
    rows = torch.stack([rows[0], 3 * rows[1], 0.5 * rows[0] + 0.7 * rows[1]])
    single = rows.float().double()  # dependent up to rounding only
    assert 0 < float(torch.linalg.eigvalsh(single @ single.T)[0]) < 1e-10
    losses = torch.ones(3)
    expected = create(name)(kernel_of(rows @ rows.T), losses=losses) @ rows
    found = create(name)(kernel_of(single @ single.T), losses=losses) @ single
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5 * float(expected.norm()))
    assert float(found.norm()) > 0.1 * float(rows.norm(dim=1).min())


def test_small_gradients_are_not_taken_for_rounding() -> None:
    # Norms 1 and 1e-5: eigenvalues are 1e10 apart, cosines are not.
    gramian = tensor([[1.0, 2e-6], [2e-6, 1e-10]])
    found = weigh("imtl-g", gramian)
    torch.testing.assert_close(found[1] / found[0], torch.tensor(1e5, dtype=torch.float64))
    lengths = weigh("aligned-mtl", torch.diag(tensor([1.0, 1e-10])))
    torch.testing.assert_close(lengths, tensor([1e-5, 1.0]), **EXACT)


def test_impartial_weights_of_the_same_gradient_twice() -> None:
    # Unit gradients u, u and v, orthogonal: C^+ 1 = (1/2, 1/2, 1); norms 1, 2 and 4.
    gramian = tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 16.0]])
    torch.testing.assert_close(weigh("imtl-g", gramian), tensor([0.5, 0.25, 0.25]), **EXACT)


def test_impartial_weights_of_a_gradient_that_is_zero() -> None:
    # 1 / 3 for the middle one; the others, (3/4, 1/4) by themselves, share the rest.
    gramian = torch.diag(tensor([1.0, 0.0, 9.0]))
    torch.testing.assert_close(weigh("imtl-g", gramian), tensor([1 / 2, 1 / 3, 1 / 6]), **EXACT)
    torch.testing.assert_close(weigh("imtl-g", 0 * gramian), tensor([1 / 3] * 3), **EXACT)
    assert weigh("imtl-g", [[1.0, -1.0], [-1.0, 1.0]]).tolist() == [0.0, 0.0]


def test_aligned_mtl_of_the_same_gradient_twice() -> None:
    # G = 1 1^T has one direction, (1, 1) / sqrt(2), which stays as it is.
    torch.testing.assert_close(
        weigh("aligned-mtl", [[1.0, 1.0], [1.0, 1.0]]), tensor([1.0, 1.0]), **EXACT
    )
