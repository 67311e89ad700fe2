"""A weighting with a state belongs to one Balancer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from balance.small_network import inputs, losses_of, network
from ntkmtl import Balancer
from ntkmtl.weighting import create

STATEFUL = ("gradvac", "moco", "famo", "dwa", "uw", "graddrop", "cr-mogm")


TRUNK, HEADS = network()


def losses() -> list[torch.Tensor]:
    return losses_of(HEADS, TRUNK(inputs()))


@pytest.mark.parametrize("method", STATEFUL)
def test_the_last_balancer_owns_a_weighting(method: str) -> None:
    weighting = create(method)
    first = Balancer(weighting)
    first.backward(losses())
    second = Balancer(weighting)
    before, made = weighting.state_dict(), losses()
    for call in (
        lambda: first.backward(made),
        lambda: first.end_epoch(),
        *([lambda: first.after_step(made)] if first.needs_after_step else []),
    ):
        with pytest.raises(ValueError, match=r"given to another Balancer.*make a weighting for"):
            call()
    after = weighting.state_dict()
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert after[key] == value
    for _ in range(2):
        second.backward(losses())


def test_nor_may_a_weighting_be_within_two() -> None:
    inner = create("gradvac")
    first = Balancer(create("cr-mogm", inner=inner))
    Balancer(inner).backward(losses())
    with pytest.raises(ValueError, match="GradVac was given to another Balancer"):
        first.backward(losses())


@pytest.mark.parametrize("method", STATEFUL)
def test_made_anew_for_the_same_weighting(method: str) -> None:
    weighting = create(method)
    for _ in range(2):
        balancer = Balancer(weighting, tasks=3)  # the one before is alive until here
        for _ in range(2):
            balancer.backward(losses())


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("method", STATEFUL)
def test_copies_have_weightings_of_their_own(method: str, way: str) -> None:
    balancer = Balancer(create(method))
    balancer.backward(losses())
    kept = pickle.dumps(balancer)
    copied = copy.deepcopy(balancer) if way == "deepcopy" else pickle.loads(kept)  # noqa: S301
    alone = copy.deepcopy(balancer.weighting)
    third = Balancer(alone)
    found = [
        [b.backward(losses()).weights for _ in range(3)]  # in turns of three
        for b in (balancer, copied, third)
    ]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "mgda", "fairgrad", "si", "ls"])
def test_weightings_without_a_state_may_be_shared(method: str) -> None:
    weighting = create(method)
    balancers = [Balancer(weighting, minibatches=1) for _ in range(2)]
    for balancer in (*balancers, *balancers):
        balancer.backward(losses())
