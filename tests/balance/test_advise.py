"""``ntkmtl.advise``: the advice depends on graph and arguments, and its code runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import ntkmtl
from ntkmtl.balance import RULES

ROOT = Path(__file__).parents[2]


def heads_on_a_trunk() -> dict[str, torch.Tensor]:
    z = nn.Linear(3, 4)(torch.randn(8, 3)).tanh()
    return {name: nn.Linear(4, 1)(z).square().mean() for name in ("a", "b")}


def energy_and_forces() -> dict[str, torch.Tensor]:
    x = torch.randn(8, 3, requires_grad=True)
    energy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))(x)
    (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return {"energy": energy.square().mean(), "forces": slope.square().mean()}


def strangers() -> dict[str, torch.Tensor]:
    return {name: nn.Linear(3, 1)(torch.randn(8, 3)).square().mean() for name in ("a", "b")}


def test_any_network_of_several_losses() -> None:
    advice = ntkmtl.advise(heads_on_a_trunk())
    assert (advice.balancer, advice.call) == ("Balancer()", "balancer.backward(losses)")
    assert ntkmtl.advise(heads_on_a_trunk(), budget=1.05).balancer == "Balancer(budget=1.05)"


def test_new_weights_in_every_step_need_a_representation() -> None:
    assert ntkmtl.advise(heads_on_a_trunk(), every_step=True).balancer == (
        'Balancer("ntkmtl-sr", minibatches=1)'
    )
    z = nn.Linear(3, 4)(torch.randn(8, 3))
    samples = {name: nn.Linear(4, 1)(z).square()[:, 0] for name in ("a", "b")}
    assert ntkmtl.advise(samples, every_step=True).balancer == 'Balancer("ntkmtl-sr")'
    assert ntkmtl.advise(energy_and_forces(), every_step=True).balancer == "Balancer()"
    advice = ntkmtl.advise(energy_and_forces(), every_step=True, budget=2.4)
    assert advice.balancer == 'Balancer("ntkmtl")'


def test_nothing_shared_needs_no_balancer() -> None:
    advice = ntkmtl.advise(strangers(), priorities={"a": 2})
    assert (advice.balancer, advice.call) == ("", "sum(losses.values()).backward()")
    alone = {"a": heads_on_a_trunk()["a"]}
    assert not ntkmtl.advise(alone).balancer


def test_options_are_combined() -> None:
    advice = ntkmtl.advise(
        heads_on_a_trunk(), priorities={"b": 3}, keep_learning_rate=True, every_step=True
    )
    assert (
        advice.balancer
        == 'Balancer("ntkmtl-sr", minibatches=1, priorities={\'b\': 3}, length="plain")'
    )


@pytest.mark.parametrize("losses", [heads_on_a_trunk, energy_and_forces])
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("budget", [1.05, 1.1, 3.0])
def test_the_code_runs(losses, every_step: bool, budget: float) -> None:
    values = losses()
    advice = ntkmtl.advise(values, budget=budget, every_step=every_step, keep_learning_rate=True)
    names = {"Balancer": ntkmtl.Balancer, "losses": values}
    exec(f"balancer = {advice.balancer}\nout = {advice.call}", names)
    assert bool(names["out"].weights.isfinite().all())


def test_every_row_can_apply_and_its_page_exists() -> None:
    seen = set()
    for losses in (heads_on_a_trunk(), strangers()):
        for loop in ("plain", "accumulation", "closure", "scaler", "turns", "processes"):
            for framework in ("pytorch", "accelerate", "lightning", "trainer", "keras", "torchjd"):
                for budget, every in ((1.1, False), (1.1, True), (9.0, False)):
                    advice = ntkmtl.advise(
                        losses,
                        loop=loop,
                        framework=framework,
                        budget=budget,
                        every_step=every,
                        priorities={"a": 2},
                        keep_learning_rate=True,
                    )
                    seen |= {id(rule) for rule in advice.rules}
    assert seen == {id(rule) for rule in RULES}
    for rule in RULES:
        assert (ROOT / "docs" / rule.page.partition("#")[0]).is_file(), rule.page


def test_unknown_loops_and_frameworks() -> None:
    losses = heads_on_a_trunk()
    with pytest.raises(ValueError, match=r"loop must be one of plain, .*Found 'amp'"):
        ntkmtl.advise(losses, loop="amp")
    with pytest.raises(ValueError, match=r"framework must be one of pytorch"):
        ntkmtl.advise(losses, framework="jax")
    with pytest.raises(ValueError, match="budget"):
        ntkmtl.advise(losses, budget=0.5)
    with pytest.raises(ValueError, match="c"):
        ntkmtl.advise(losses, priorities={"c": 2})


def test_the_page_is_written_from_the_rules() -> None:
    path = ROOT / "scripts" / "make_decision_page.py"
    spec = importlib.util.spec_from_file_location("make_decision_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.page(), f"run python {path.name}"
