"""Methods that read losses only: weights are d total / d l_i of the written-out total."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchjd import scalarization

from ntkmtl.weighting import create

EXACT = {"rtol": 1e-9, "atol": 1e-14}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slopes(total: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """Differentiate a written-out total by the losses."""
    losses = losses.clone().requires_grad_()
    return torch.autograd.grad(total(losses), losses)[0]


LOSSES = tensor(0.5, 4.0, 2.0)


def test_ls() -> None:
    # Eq. 6: the plain sum.
    assert create("ls")(losses=LOSSES).tolist() == [1.0, 1.0, 1.0]


def test_stl_is_for_one_task() -> None:
    assert create("stl")(losses=tensor(3.0)).tolist() == [1.0]
    with pytest.raises(ValueError, match="one task alone"):
        create("stl")(losses=tensor(3.0, 1.0))


def test_si() -> None:
    # d log l / d l = 1 / l.
    assert create("si")(losses=LOSSES).tolist() == [2.0, 0.25, 0.5]
    found = create("si")(losses=LOSSES)
    torch.testing.assert_close(found, slopes(lambda x: x.log().sum(), LOSSES), **EXACT)
    assert create("si")(losses=tensor(0.0, 2.0)).tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="negative"):
        create("si")(losses=tensor(-1.0, 2.0))


def test_rlw_is_a_softmax_of_normal_numbers() -> None:
    weighting = create("rlw", seed=3)
    generator = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(400):
        weights = weighting(losses=LOSSES)
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
        assert (weights > 0).all()
        normal = torch.randn(3, dtype=torch.float64, generator=generator)
        torch.testing.assert_close(weights, normal.exp() / normal.exp().sum(), **EXACT)
        drawn.append(weights)
    # log w_i - log w_j is the difference of two standard normals: mean 0, variance 2.
    logs = torch.stack(drawn).log()
    difference = logs[:, 0] - logs[:, 1]
    assert abs(difference.mean()) < 4 * math.sqrt(2 / 400)
    assert difference.var() == pytest.approx(2.0, rel=0.3)


def test_rlw_follows_the_global_seed_and_leaves_it_alone() -> None:
    torch.manual_seed(11)
    first = create("rlw")(losses=LOSSES)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    second = create("rlw")(losses=LOSSES)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_dwa() -> None:
    # Epoch means: task 0: 4, 2; task 1: 1, 1. r = (0.5, 1); T = 2.
    # w = 2 exp(r / 2) / (exp(1/4) + exp(1/2)).
    weighting = create("dwa")
    for epoch in ([(5.0, 0.5), (3.0, 1.5)], [(1.0, 1.0), (3.0, 1.0)]):
        for losses in epoch:
            assert weighting(losses=tensor(*losses)).tolist() == [1.0, 1.0]
        weighting.end_epoch()
    total = math.exp(0.25) + math.exp(0.5)
    expected = tensor(2 * math.exp(0.25) / total, 2 * math.exp(0.5) / total)
    torch.testing.assert_close(weighting(losses=tensor(7.0, 8.0)), expected, **EXACT)


def test_dwa_equals_torchjd() -> None:
    ours, theirs = create("dwa", temperature=1.5), scalarization.DWA(temperature=1.5)
    for _ in range(5):
        for _ in range(3):
            losses = torch.rand(4, dtype=torch.float64) + 0.1
            expected = slopes(theirs, losses)
            torch.testing.assert_close(ours(losses=losses), expected, **EXACT)
        ours.end_epoch()
        theirs.step()


def test_dwa_task_without_labels_for_an_epoch_keeps_its_mean() -> None:
    weighting = create("dwa")
    weighting.prepare(2, torch.device("cpu"))
    both, first = torch.tensor([0, 1]), torch.tensor([0])
    weighting(losses=tensor(4.0, 3.0), tasks=both)
    weighting.end_epoch()
    weighting(losses=tensor(2.0), tasks=first)
    weighting.end_epoch()
    # r = (2 / 4, 3 / 3).
    expected = 2 * torch.softmax(tensor(0.25, 0.5), dim=0)
    torch.testing.assert_close(weighting(losses=tensor(1.0, 1.0), tasks=both), expected, **EXACT)


def test_uw() -> None:
    # Total sum_i (exp(-s_i) l_i + s_i) / 2. At s = (0, log 4, -log 2): w = (1, 1/4, 2) / 2.
    weighting = create("uw", tasks=3)
    (parameter,) = weighting.parameters()
    with torch.no_grad():
        parameter.copy_(tensor(0.0, math.log(4.0), -math.log(2.0)))
    torch.testing.assert_close(
        weighting(losses=LOSSES), tensor(0.5, 0.125, 1.0), rtol=1e-6, atol=0.0
    )
    # d / d s_i = (1 - exp(-s_i) l_i) / 2 = ((1 - 1/2), (1 - 1), (1 - 4)) / 2.
    weighting.accumulate(LOSSES, torch.arange(3), 1.0)
    assert parameter.grad is not None
    torch.testing.assert_close(parameter.grad.double(), tensor(0.25, 0.0, -1.5), rtol=0, atol=1e-6)
    weighting.accumulate(LOSSES[1:], torch.tensor([1, 2]), 2.0)
    torch.testing.assert_close(parameter.grad.double(), tensor(0.25, 0.0, -4.5), rtol=0, atol=1e-6)


def test_uw_trains_as_torchjd_does() -> None:
    ours, theirs = create("uw", tasks=3), scalarization.UW(3)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (ours, theirs)]
    for _ in range(20):
        losses = torch.rand(3, dtype=torch.float64) * 3
        for optimizer in optimizers:
            optimizer.zero_grad()
        values = losses.clone().requires_grad_()
        theirs(values).backward()
        torch.testing.assert_close(ours(losses=losses), values.grad, rtol=1e-5, atol=1e-7)
        ours.accumulate(losses, torch.arange(3), 1.0)
        for optimizer in optimizers:
            optimizer.step()


def test_uw_parameter_is_accepted_by_optimisers_before_the_first_step() -> None:
    weighting = create("uw")
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        weighting(losses=LOSSES)
        weighting.accumulate(LOSSES, torch.arange(3), 1.0)
        optimizer.step()
    (parameter,) = weighting.parameters()
    assert parameter.shape == (3,)
    assert parameter.abs().min() > 0


def test_uw_with_another_number_of_tasks() -> None:
    with pytest.raises(ValueError, match="tasks"):
        create("uw", tasks=2)(losses=LOSSES)


def test_famo_by_hand() -> None:
    # z = (1/3, 1/3, 1/3): w_i = (1 / l_i) / sum_j 1 / l_j; 1 / l = (2, 1/4, 1/2), sum 11/4.
    weighting = create("famo")
    found = weighting(losses=LOSSES)
    torch.testing.assert_close(found, tensor(8, 1, 2) / 11, rtol=1e-7, atol=0.0)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_famo_is_the_slope_of_its_total() -> None:
    weighting = create("famo")
    for _ in range(3):
        losses = torch.rand(3, dtype=torch.float64)
        found = weighting(losses=losses)
        z = torch.softmax(weighting.state_dict()["logits"], dim=0)
        c = 1 / (z / (losses + 1e-8)).sum()
        expected = slopes(lambda x, z=z, c=c: c * (z * (x + 1e-8).log()).sum(), losses)
        torch.testing.assert_close(found, expected, **EXACT)
        weighting.after_step(losses * torch.rand(3, dtype=torch.float64), torch.arange(3))


def test_famo_after_step_is_a_step_of_adam() -> None:
    learning_rate, gamma = 0.1, 0.01
    weighting = create("famo", learning_rate=learning_rate, gamma=gamma)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate, weight_decay=gamma)
    for _ in range(10):
        before, after = torch.rand(2, 3, dtype=torch.float64)
        share = torch.softmax(logits.detach(), dim=0) / (before + 1e-8)
        torch.testing.assert_close(weighting(losses=before), share / share.sum(), **EXACT)
        weighting.after_step(after, torch.arange(3))
        fall = (before + 1e-8).log() - (after + 1e-8).log()
        (logits.grad,) = torch.autograd.grad(torch.softmax(logits, dim=0), logits, fall)
        optimizer.step()


def test_famo_equals_torchjd_over_many_steps() -> None:
    ours = create("famo", min_loss=0.05)
    theirs = scalarization.FAMO(4, min_losses=torch.full((4,), 0.05, dtype=torch.float64)).double()
    losses = torch.rand(4, dtype=torch.float64) * tensor(1, 10, 100, 1000) + 1
    for _ in range(60):
        torch.testing.assert_close(ours(losses=losses), slopes(theirs, losses), **EXACT)
        losses = 0.1 + losses * (1 - 0.05 * torch.rand(4, dtype=torch.float64))
        ours.after_step(losses, torch.arange(4))
        theirs.update(losses)


def test_famo_input() -> None:
    weighting = create("famo", min_loss=1.0)
    with pytest.raises(ValueError, match=r"above min_loss=1\.0"):
        weighting(losses=LOSSES)
    weighting = create("famo")
    weighting(losses=LOSSES)
    weighting.after_step(LOSSES, torch.arange(3))
    with pytest.raises(ValueError, match="last backward"):
        weighting.after_step(LOSSES, torch.arange(3))


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dwa", {"temperature": 0.0}),
        ("famo", {"learning_rate": -1.0}),
        ("famo", {"gamma": float("nan")}),
        ("stch", {"mu": 0.0}),
        ("stch", {"warmup": -1}),
        ("uw", {"tasks": 0}),
        ("ntkmtl", {"exponent": -0.5}),
        ("cagrad", {"c": -0.1}),
        ("fairgrad", {"alpha": 0.0}),
        ("aligned-mtl", {"scale_mode": "max"}),
    ],
)
def test_settings_out_of_range(name: str, options: dict[str, float]) -> None:
    (setting,) = options
    with pytest.raises(ValueError, match=setting):
        create(name, **options)
