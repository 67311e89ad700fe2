"""``ntkmtl.weigh``: constants that are known by hand, and what it refuses."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ntkmtl
from ntkmtl import Balancer
from ntkmtl.balance import BalanceResult
from ntkmtl.watch import FORMATS, ConstantWeights, Watch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x).tanh())[:, 0]


def losses_of(net: Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """One loss and 100 times it: eigenvalues 1 : 10^4, weights of Eq. 15 100 : 1."""
    one = (net(x) - 1).square().mean()
    return {"small": one, "large": 100 * one}


def watched(loss: Any = losses_of, steps: int | None = None, **options: Any) -> Watch:
    torch.manual_seed(0)
    net = Net().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    watch = ntkmtl.weigh(**{"total_steps": 1_000, **options})
    for _ in range(watch.total if steps is None else steps):
        optimizer.zero_grad()
        watch.backward(loss(net, torch.randn(16, 4, dtype=torch.float64)))
        optimizer.step()
    return watch


@pytest.mark.parametrize("train", ["balanced", "sum"])
def test_constants_of_a_loss_and_a_multiple_of_it(train: Any) -> None:
    found = watched(train=train).result()
    # (100, 1) with mean 1.
    assert found.weights == pytest.approx({"small": 200 / 101, "large": 2 / 101}, rel=1e-9)
    assert found.low == pytest.approx(found.weights, rel=1e-9)
    assert found.high == pytest.approx(found.weights, rel=1e-9)
    assert found.drift == pytest.approx({"small": 1.0, "large": 1.0}, rel=1e-9)
    assert (found.steps, found.looks, found.settled, found.switch) == (50, 50, 0, None)
    assert found.warnings == ()


@pytest.mark.parametrize("given", [{"large": 3.0}, [1.0, 3.0]])
def test_priorities_multiply_constants(given: Any) -> None:
    found = watched(priorities=given).result()
    # Times p / mean(p) = (0.5, 1.5).
    assert found.weights == pytest.approx({"small": 100 / 101, "large": 3 / 101}, rel=1e-9)


def test_a_method_that_reads_losses() -> None:
    found = watched(method="si").result()
    assert found.weights == pytest.approx({"small": 200 / 101, "large": 2 / 101}, rel=1e-9)


@pytest.mark.parametrize(
    ("total", "percent", "steps", "looks"),
    [(1_000, 1, 50, 50), (30, 2, 30, 30), (10_000, 1, 100, 100), (10_000, 3, 300, 100)],
)
def test_number_of_steps_and_of_looks(total: int, percent: float, steps: int, looks: int) -> None:
    found = watched(total_steps=total, percent=percent).result()
    assert (found.steps, found.looks) == (steps, looks)


def test_a_task_that_is_absent_at_times_does_not_shift_the_others() -> None:
    calls = iter(range(1_000))

    def losses(net: Net, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        found: dict[str, torch.Tensor | None] = dict(losses_of(net, x))
        found["middle"] = 10 * found["small"] if next(calls) % 3 else None  # type: ignore[operator]
        return found

    found = watched(losses).result()
    # 100 : 1 : 10 with mean 1.
    expected = {"small": 300 / 111, "large": 3 / 111, "middle": 30 / 111}
    assert found.weights == pytest.approx(expected, rel=1e-6)


def test_two_phases_are_found_and_said() -> None:
    calls = iter(range(1_000))

    def losses(net: Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = losses_of(net, x)
        noise = float(torch.randn(()).mul(0.1).exp())
        return {**found, "large": found["large"] * noise * (1 if next(calls) < 40 else 0.1)}

    found = watched(losses, total_steps=2_000, percent=5).result()
    assert found.switch == 40
    assert found.phases[0]["small"] / found.phases[0]["large"] == pytest.approx(100, rel=0.1)
    assert found.phases[1]["small"] / found.phases[1]["large"] == pytest.approx(10, rel=0.1)
    assert "two phases, with the switch at step 40" in found.warnings[0]


def test_steps_goes_through_the_loader_again() -> None:
    watch = ntkmtl.weigh(total_steps=100)
    seen = []
    for batch in watch.steps("abc"):
        seen.append(batch)
        watch.observe(BalanceResult(torch.ones(2)))
    assert len(seen) == 50
    assert seen[:4] == ["a", "b", "c", "a"]
    with pytest.raises(ValueError, match="watched no step"):
        list(ntkmtl.weigh(total_steps=100).steps(iter(())))


def test_leaving_early_is_said() -> None:
    watch = watched(steps=20)
    with pytest.raises(ValueError, match="20 of 50 steps were watched"):
        watch.result()
    with pytest.warns(UserWarning, match="20 of 50 steps were watched"), watch:
        pass


def test_skipped_steps_are_no_looks() -> None:
    watch = watched(steps=49)
    watch.observe(BalanceResult(torch.zeros(2), skipped=True))
    assert watch.result().looks == 49


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be a whole number"),
        ({"percent": 0}, "percent must be above 0"),
        ({"percent": 101}, "percent must be above 0"),
        ({"train": "plain"}, "train must be 'balanced' or 'sum'"),
        ({"method": "graddrop"}, "makes no weight per loss"),
        ({"method": "si", "train": "sum"}, "reads no kernel"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntkmtl.weigh(**{"total_steps": 1_000, **options})


@pytest.mark.parametrize(
    ("given", "message"),
    [({"no": 1.0}, "unknown tasks"), ([1.0], "2 positive numbers"), ([1.0, -1.0], "positive")],
)
def test_priorities_that_are_refused(given: Any, message: str) -> None:
    watch = watched(priorities=given)
    with pytest.raises(ValueError, match=message):
        watch.result()


def test_a_task_that_is_never_seen_is_an_error() -> None:
    def losses(net: Net, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        return {**losses_of(net, x), "never": None}

    watch = watched(losses)
    with pytest.raises(ValueError, match=r"tasks \['never'\] had no label"):
        watch.result()


def test_weights_that_are_never_above_0_are_no_looks() -> None:
    watch = watched(steps=0)
    for _ in range(watch.total):
        watch.observe(BalanceResult(torch.tensor([0.0, -1.0])))
    with pytest.raises(ValueError, match=r"0 looks .* have labels and weights above 0"):
        watch.result()


def test_the_balancer_of_a_loop_can_be_watched() -> None:
    balancer = Balancer("ntkmtl", tasks=["small", "large"])
    watch = Watch(balancer, 20)
    net = Net().double()
    for _ in range(20):
        watch.observe(balancer.backward(losses_of(net, torch.randn(8, 4, dtype=torch.float64))))
    assert watch.result().weights["small"] == pytest.approx(200 / 101, rel=1e-9)


def constants(**weights: float) -> ConstantWeights:
    ones = dict.fromkeys(weights, 1.0)
    return ConstantWeights(weights, weights, weights, "ntkmtl", 50, 50, 0, ones)


@pytest.mark.parametrize(
    ("form", "weights", "line"),
    [
        ("python", {"a": 1.5, "b": 0.5}, 'loss_weights = {"a": 1.5, "b": 0.5}'),
        ("yaml", {"a": 1.5, "b c": 0.5}, 'loss_weights: {a: 1.5, "b c": 0.5}'),
        ("keras", {"a": 1.5, "b": 0.5}, 'loss_weights={"a": 1.5, "b": 0.5}'),
        ("lightning", {"a": 1.5, "b": 0.5}, "model: {loss_weights: {a: 1.5, b: 0.5}}"),
        ("mace", {"energy": 1.5, "forces": 0.5}, "--energy_weight=1.5 --forces_weight=0.5"),
        ("nequip", {"total_energy": 1.5, "forces": 2}, "coeffs: {total_energy: 1.5, forces: 2}"),
        ("chemprop", {"mu": 1.5, "homo": 0.51234}, "--task-weights 1.5 0.5123"),
        ("ultralytics", {"box": 1.5, "cls": 0.5}, "box=1.5 cls=0.5"),
        ("key=value", {"a": 1.5, "b": 0.5}, "a=1.5 b=0.5"),
    ],
)
def test_the_line_of_each_tool(form: str, weights: dict[str, float], line: str) -> None:
    assert constants(**weights).as_text(form) == line


AWKWARD = {"no": 1.5, "y": 0.5, "it's": 1e-5, 'say "a"': 2e-7, "größe 😀": 12345678.0, "Null": 1.0}


@pytest.mark.parametrize("form", ["yaml", "lightning", "python", "keras"])
def test_awkward_names_and_small_numbers_are_read_back(form: str) -> None:
    line = constants(**AWKWARD).as_text(form)
    if form in ("yaml", "lightning"):
        found = yaml.safe_load(line)
        found = (found["model"] if form == "lightning" else found)["loss_weights"]
    else:
        found = ast.literal_eval(line.partition("=")[2].strip())
    assert found == pytest.approx(AWKWARD, rel=1e-3)


@pytest.mark.parametrize("name", ["a b", "a=b", 'a"'])
def test_a_name_that_key_value_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="take the format python or yaml"):
        constants(**{name: 1.0}).as_text("key=value")


def test_every_format_is_tested() -> None:
    mark = test_the_line_of_each_tool.pytestmark[0]  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == set(FORMATS)


@pytest.mark.parametrize("form", ["mace", "nequip", "ultralytics"])
def test_a_tool_without_such_a_loss_refuses(form: str) -> None:
    with pytest.raises(ValueError, match=r"has no losses \['height'\]; name the tasks as it does"):
        constants(height=1.0).as_text(form)
    with pytest.raises(ValueError, match="format must be one of"):
        constants(height=1.0).as_text("toml")
