"""stch: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd import scalarization

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    slopes,
    tensor,
)


def test_stch() -> None:
    # Warm-up of 1 epoch and a reference epoch of log losses, then the smooth maximum: with mu = 1,
    # total = k log sum_j l_j / n_j, so w_i = k (1 / n_i) / sum_j l_j / n_j.
    weighting = create("stch", warmup=1)
    for epoch in ([(8.0, 1.0)], [(1.0, 3.0), (3.0, 5.0)]):
        for losses in epoch:
            expected = 1 / tensor(*losses)
            torch.testing.assert_close(weighting(losses=tensor(*losses)), expected, **EXACT)
        weighting.end_epoch()
    # References are the means of the second epoch, n = (2, 4). At l = (1, 2): sum 1/2 + 1/2.
    found = weighting(losses=tensor(1.0, 2.0))
    torch.testing.assert_close(found, tensor(2 / 2, 2 / 4), **EXACT)
    weighting.end_epoch()
    # The reference stays. At l = (4, 4): sum 2 + 1.
    found = weighting(losses=tensor(4.0, 4.0))
    torch.testing.assert_close(found, tensor(2 / 6, 2 / 12), **EXACT)


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 10.0])
def test_stch_is_the_slope_of_its_total_and_torchjds(mu: float) -> None:
    reference = tensor(0.3, 2.0, 50.0)
    weighting = create("stch", mu=mu, warmup=0)
    weighting(losses=reference)
    weighting.end_epoch()
    theirs = scalarization.STCH(mu, torch.ones(3, dtype=torch.float64), reference.log())
    for _ in range(5):
        losses = torch.rand(3, dtype=torch.float64) * tensor(1, 3, 50) + 1e-3
        found = weighting(losses=losses)
        expected = slopes(
            lambda x: 3 * mu * torch.logsumexp((x / reference).log() / mu, dim=0), losses
        )
        torch.testing.assert_close(found, expected, **EXACT)
        torch.testing.assert_close(
            found, slopes(lambda x: 3 * theirs(x.log()), losses), rtol=1e-9, atol=1e-14
        )


@pytest.mark.parametrize("reference", [(2.0, 4.0), (0.0, 4.0), (0.0, 0.0)])
@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_stch_stays_finite_where_losses_are_zero(
    reference: tuple[float, ...], losses: tuple[float, ...]
) -> None:
    weighting = create("stch", warmup=0)
    weighting(losses=tensor(*reference))
    weighting.end_epoch()
    assert weighting(losses=tensor(*losses)).isfinite().all()


def test_stch_task_without_labels_in_the_reference_epoch() -> None:
    weighting = create("stch", warmup=0)
    weighting.prepare(2, torch.device("cpu"))
    weighting(losses=tensor(2.0), tasks=torch.tensor([0]))
    weighting.end_epoch()
    both = torch.arange(2)
    # n_1 = 8, its first loss: w_i = 2 (1 / n_i) / (2/2 + 8/8).
    expected = tensor(1 / 2, 1 / 8)
    torch.testing.assert_close(weighting(losses=tensor(2.0, 8.0), tasks=both), expected, **EXACT)
    expected = 2 * tensor(1 / 2, 1 / 8) / (2 / 2 + 4 / 8)
    torch.testing.assert_close(weighting(losses=tensor(2.0, 4.0), tasks=both), expected, **EXACT)
