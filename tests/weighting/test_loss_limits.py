"""Losses of zero, next to zero and huge, for every method that reads losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import Weighting, create, names, spec
from ntkmtl.weighting._losses import LEAST_LOSS, logarithm, reciprocals
from ntkmtl.weighting._task_adam import TaskAdam
from ntkmtl.weighting._task_parameter import LARGEST_EXPONENT

READERS = [n for n in names() if spec(n).requires == "losses" and n != "stl"]
# They read the kernel, or the gradients, and losses as well.
READERS += ["imtl", "gradnorm", "moco", "db-mtl", "pinn-ntk"]
INVERSE = ("si", "gls", "go4align", "stch")
EXTREME = {
    "zero": 0.0,
    "smallest": 5e-324,
    "subnormal": 1e-45,
    "small": 1e-37,
    "large": 1e37,
    "largest": 3e38,
}


def weights_of(weighting: Weighting, losses: Tensor) -> Tensor:
    k = len(losses)
    if weighting.requires == "losses":
        return weighting(losses=losses)
    if weighting.requires == "jacobian":
        combined, weights = weighting.combine(torch.eye(k, k + 1), losses, torch.arange(k))
        assert bool(combined.isfinite().all())
        return weights
    return weighting(ExtendedNTK(torch.eye(k).reshape(k, 1, k, 1)), losses=losses)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("kind", EXTREME)
@pytest.mark.parametrize("name", READERS)
def test_a_run_goes_on_after_an_extreme_loss(name: str, kind: str, k: int) -> None:
    weighting = create(name)
    tasks = torch.arange(k)
    usual = torch.linspace(1.0, 2.0, k, dtype=torch.float64)
    extreme = usual.clone()
    extreme[0] = EXTREME[kind]
    every = torch.full_like(usual, EXTREME[kind])
    for _ in range(7):  # stch and dwa need some epochs to begin
        for losses in (usual, extreme, every, usual):
            weights = weights_of(weighting, losses)
            assert weights.shape == (k,)
            assert bool(weights.isfinite().all()), (kind, losses, weights)
            # In float32, in which weights meet losses, nothing overflows but what was that large.
            if kind in ("zero", "smallest", "subnormal"):
                assert bool((weights.abs() < 1e38).all())
            weighting.accumulate(losses, tasks, 1.0)
            weighting.after_step(losses, tasks)
            for parameter in weighting.parameters():
                assert parameter.grad is not None
                assert bool(parameter.grad.isfinite().all())
                parameter.grad = None
        weighting.end_epoch()


@pytest.mark.parametrize("name", INVERSE)
def test_a_loss_of_zero_has_weight_zero_and_leaves_the_others_alone(name: str) -> None:
    plain, other = create(name), create(name)
    other.prepare(3, torch.device("cpu"))
    for _ in range(6):
        found = plain(losses=torch.tensor([2.0, 0.0, 3.0]))
        expected = other(losses=torch.tensor([2.0, 3.0]), tasks=torch.tensor([0, 2]))
        assert found[1] == 0.0
        if name == "stch":  # k times the softmax
            expected = expected if plain._epoch <= plain.warmup else expected * 3 / 2
        if name == "go4align":  # its indicator counts, with the share that it has
            expected = expected * (2 / 3)
        torch.testing.assert_close(found[[0, 2]], expected, rtol=1e-3, atol=0.0)
        plain.end_epoch()
        other.end_epoch()


@pytest.mark.parametrize("name", [*INVERSE, "imtl-l", "imtl", "gradnorm"])
def test_a_negative_loss_is_an_error_in_words(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} .*found a negative one in .*shift the loss"):
        weights_of(create(name), torch.tensor([1.0, -1e-3], dtype=torch.float64))


def test_logarithms_of_zero_have_no_slope() -> None:
    losses = torch.tensor([2.0, 0.0, 1e-45], requires_grad=True)
    values = logarithm(losses)
    (slopes,) = torch.autograd.grad(values.sum(), losses)
    assert slopes.tolist() == [0.5, 0.0, 0.0]
    assert values.tolist()[1:] == pytest.approx([math.log(LEAST_LOSS)] * 2)
    assert reciprocals(torch.tensor([2.0, 0.0, 1e-45])).tolist() == [0.5, 0.0, 0.0]
    assert bool((1.0 / torch.tensor(LEAST_LOSS)).isfinite())


def test_stch_takes_the_first_loss_above_zero_as_reference() -> None:
    weighting = create("stch", warmup=0)
    weighting(losses=torch.tensor([2.0, 0.0]))
    weighting.end_epoch()
    # No reference for the second yet: all weight is the first's, k / loss.
    torch.testing.assert_close(
        weighting(losses=torch.tensor([4.0, 0.0])), torch.tensor([0.5, 0.0], dtype=torch.float64)
    )
    # n = (2, 8): relative losses 2 and 1, so k (2/3 / 4, 1/3 / 8).
    found = weighting(losses=torch.tensor([4.0, 8.0]))
    torch.testing.assert_close(found, torch.tensor([1 / 3, 1 / 12], dtype=torch.float64))


@pytest.mark.parametrize("name", ["uw", "imtl-l"])
def test_a_loss_that_stays_at_zero_does_not_run_away(name: str) -> None:
    weighting = create(name, tasks=2)
    (parameter,) = weighting.parameters()
    losses, tasks = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.arange(2)
    for _ in range(300):
        weighting.accumulate(losses, tasks, 1.0)
        assert parameter.grad is not None
        parameter.data -= parameter.grad
        parameter.grad = None
    assert LARGEST_EXPONENT <= abs(float(parameter.detach()[0])) <= LARGEST_EXPONENT + 1
    weights = weighting(losses=losses)
    assert float(weights[0]) <= math.exp(LARGEST_EXPONENT)
    assert bool((weights.float() * 1e10).isfinite().all())
    # It comes back once the loss does.
    before = abs(float(parameter.detach()[0]))
    weighting.accumulate(torch.tensor([1e-20, 1.0], dtype=torch.float64), tasks, 1.0)
    assert parameter.grad is not None
    assert abs(float(parameter.detach()[0] - 1e-6 * parameter.grad[0])) < before


def test_imtl_holds_the_scale_of_a_loss_that_stays_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    weighting = create("imtl", learning_rate=10.0)
    kernel = ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1))
    for _ in range(40):
        weights = weighting(kernel, losses=torch.tensor([0.0, 1.0]))
        assert bool(weights.float().isfinite().all())
    assert isinstance(weighting._adam, TaskAdam)
    assert float(weighting._adam.values.max()) <= LARGEST_EXPONENT + 20.0
