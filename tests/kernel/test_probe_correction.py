"""The factor between probes and the free estimate, learned over steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._probe_correction import ProbeCorrection


def blocks(*traces: float, n: int = 2) -> ExtendedNTK:
    """Kernels whose blocks are multiples of one matrix, with given traces."""
    shape = torch.eye(n, dtype=torch.float64) + 0.5
    shape = shape / shape.trace()
    return ExtendedNTK(blocks=torch.stack([t * shape for t in traces]))


def draw(kernel: ExtendedNTK, m: int, generator: torch.Generator) -> Tensor:
    """Slopes of m random directions for a kernel: Gaussian with its blocks as covariance."""
    factor = torch.linalg.cholesky(kernel.blocks)
    k, n = kernel.tasks, kernel.minibatches
    white = torch.randn(m, k, n, generator=generator, dtype=torch.float64)
    return torch.einsum("kuv,pkv->pku", factor, white)


def test_factors_by_hand() -> None:
    correction = ProbeCorrection(2, decay=0.5, prior=1.0)
    assert correction.factors().tolist() == [1.0, 1.0]
    free = ExtendedNTK(blocks=torch.tensor([[[2.0]], [[4.0]]], dtype=torch.float64))
    # m = 2 probes: means of squares 10 and 4, ratios 5 and 1.
    correction.update(torch.tensor([[[2.0], [2.0]], [[4.0], [-2.0]]]), free)
    # S = (10, 2), W = (2, 2), common = 3, prior 1.
    assert correction.factors().tolist() == pytest.approx([13 / 3, 5 / 3])
    correction.update(torch.tensor([[[2.0], [2.0]]]), free)  # ratios 2 and 1
    # S = (5 + 2, 1 + 1), W = 1 + 1, common = 9 / 4.
    assert correction.factors().tolist() == pytest.approx([9.25 / 3, 4.25 / 3])


def test_finds_the_largest_eigenvalues_where_the_free_estimate_is_off_by_a_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.tensor([0.2, 1.0, 30.0], dtype=torch.float64)
    correction = ProbeCorrection(3, decay=0.99)
    logs = torch.linspace(0.0, 3.0, 400)
    for x in logs.tolist():
        # The kernel itself changes by a factor of 20 along the way.
        sizes = [2.718**x, 2.718 ** (3 - x), 1.0 + x]
        free = blocks(*sizes)
        true = ExtendedNTK(blocks=free.blocks * factors[:, None, None])
        correction.update(draw(true, 1, generator), free)
    found = correction(free).max_eigenvalues() / true.max_eigenvalues()
    # Some 200 probes count: relative error sqrt(2 |K|_F^2 / tr^2 / 200) = 0.08, thrice that, and
    # the prior of 4 in 100 for the smallest.
    common = float(factors.mean())
    pulled = (100 * factors + 4 * common) / 104
    assert (found * factors / pulled - 1).abs().max() < 0.25


def test_first_update_is_unbiased_in_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    free = blocks(*[1.0] * 400)
    correction = ProbeCorrection(400, decay=0.9, prior=0.0)
    correction.update(draw(blocks(*[7.0] * 400), 4, generator), free)
    assert float(correction.factors().mean()) == pytest.approx(7.0, rel=0.1)


def test_absent_tasks_keep_their_state_and_change_no_other() -> None:
    generator = torch.Generator().manual_seed(2)
    alone, among = ProbeCorrection(2), ProbeCorrection(3)
    for _ in range(5):
        free = blocks(1.0, 2.0)
        slopes = draw(free, 2, generator)
        alone.update(slopes, free)
        among.update(slopes, free, [0, 2])
    torch.testing.assert_close(alone.factors(), among.factors([0, 2]), rtol=1e-12, atol=0)
    before = among.factors([1])
    assert float(before) == pytest.approx(float(among._sum.sum() / among._count.sum()))
    state = among.state_dict()
    among.update(draw(blocks(3.0), 1, generator), blocks(3.0), torch.tensor([1]))
    assert torch.equal(among.state_dict()["sum"][[0, 2]], state["sum"][[0, 2]])
    assert among.state_dict()["sum"][1] > 0


def test_permuting_tasks_permutes_factors() -> None:
    generator = torch.Generator().manual_seed(3)
    one, other = ProbeCorrection(3), ProbeCorrection(3)
    order = [2, 0, 1]
    free = blocks(1.0, 5.0, 9.0)
    slopes = draw(free, 3, generator)
    one.update(slopes, free)
    other.update(slopes[:, order], blocks(9.0, 1.0, 5.0))
    torch.testing.assert_close(other.factors(), one.factors()[order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_a_loss_does_not_matter(scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    free = blocks(1.0, 2.0)
    slopes = draw(free, 2, generator)
    one, other = ProbeCorrection(2), ProbeCorrection(2)
    one.update(slopes, free)
    factor = torch.tensor([scale, 1.0], dtype=torch.float64)
    other.update(slopes * factor[:, None], free.weighted(factor))
    torch.testing.assert_close(other.factors(), one.factors(), rtol=1e-9, atol=0)


def test_all_blocks_keep_their_cosines() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(2, 2, 6, generator=generator, dtype=torch.float64)
    free = ExtendedNTK(torch.einsum("iup,jvp->iujv", rows, rows))
    correction = ProbeCorrection(2)
    correction.update(torch.randn(3, 2, 2, generator=generator, dtype=torch.float64), free)
    corrected = correction(free)
    torch.testing.assert_close(corrected.affinity(), free.affinity(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        corrected.max_eigenvalues(), free.max_eigenvalues() * correction.factors()
    )


def test_a_task_with_gradient_zero_is_left_out() -> None:
    correction = ProbeCorrection(2)
    correction.update(torch.ones(1, 2, 2), blocks(0.0, 1.0))
    assert correction.state_dict()["count"].tolist() == [0.0, 1.0]


def test_state_round_trip() -> None:
    correction = ProbeCorrection(2)
    correction.update(torch.ones(1, 2, 2), blocks(1.0, 3.0))
    other = ProbeCorrection(2)
    other.load_state_dict(correction.state_dict())
    assert torch.equal(other.factors(), correction.factors())
    with pytest.raises(ValueError, match="shape"):
        ProbeCorrection(3).load_state_dict(correction.state_dict())
    with pytest.raises(ValueError, match="'count'"):
        other.load_state_dict({"sum": torch.zeros(2)})


def test_bad_input_raises() -> None:
    with pytest.raises(ValueError, match="tasks must be at least 1"):
        ProbeCorrection(0)
    with pytest.raises(ValueError, match="decay"):
        ProbeCorrection(2, decay=1.0)
    with pytest.raises(ValueError, match="prior"):
        ProbeCorrection(2, prior=-1.0)
    correction = ProbeCorrection(2)
    with pytest.raises(ValueError, match="slopes must have shape"):
        correction.update(torch.ones(1, 2, 3), blocks(1.0, 1.0))
    with pytest.raises(ValueError, match="are named"):
        correction.update(torch.ones(1, 1, 2), blocks(1.0))
    slopes = torch.ones(1, 2, 2)
    slopes[0, 1, 0] = torch.inf
    with pytest.raises(ValueError, match=r"tasks \[1\] are not finite"):
        correction.update(slopes, blocks(1.0, 1.0))
    assert correction.state_dict()["count"].tolist() == [0.0, 0.0]
