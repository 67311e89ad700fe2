"""What weightings are given, and what they return, is checked in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, ExtendedNTK, NonFiniteError
from ntkmtl.weighting import GramianWeighting, LossWeighting, Weighting, create, names

KERNEL = ExtendedNTK(torch.tensor([[4.0, 1.0], [1.0, 9.0]]).reshape(2, 1, 2, 1))
LOSSES = torch.tensor([1.0, 2.0])


def two_losses() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    trunk, x = nn.Linear(3, 4), torch.randn(5, 3)
    z = trunk(x).tanh()
    return trunk, [z[:, :2].square().mean(), 5 * (z[:, 2:] - 1).square().mean()]


def returning(value: Any, base: type[Weighting]) -> Weighting:
    body = {
        "of_losses": lambda self, losses, tasks: value,
        "of_gramian": lambda self, gramian: value,
    }
    return type("Mine", (base,), body)()


@pytest.mark.parametrize("base", [LossWeighting, GramianWeighting])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.ones(3), ValueError, r"Mine must return one weight for each of the 2 tasks"),
        (torch.ones(2, 1), ValueError, r"returned shape \(2, 1\)"),
        (torch.tensor(1.0), ValueError, r"returned shape \(\)"),
        ([1.0, 2.0], TypeError, "Mine must return a tensor of real weights"),
        (None, TypeError, "returned None"),
        (torch.ones(2, dtype=torch.cdouble), TypeError, "real weights"),
        (torch.tensor([1.0, math.nan]), NonFiniteError, "weight of task 1 is nan.*its code"),
        (torch.tensor([math.inf, 1.0]), NonFiniteError, "weight of task 0 is inf"),
    ],
)
@pytest.mark.parametrize("every", [1, 2])
def test_what_a_method_returns(
    value: Any, error: type[Exception], message: str, base: type[Weighting], every: int
) -> None:
    trunk, losses = two_losses()
    with pytest.raises(error, match=message):
        Balancer(returning(value, base), every=every).backward(losses)
    assert trunk.weight.grad is None


class Shares(LossWeighting):
    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        losses /= losses.sum()
        return 1.0 - losses


class Signs(Weighting):
    requires = "jacobian"

    def weigh(self, kernel: Any, losses: Any, tasks: Any) -> Tensor:
        raise AssertionError

    def combine(self, jacobian: Tensor, losses: Any = None, tasks: Any = None) -> Any:
        losses /= losses.sum()
        return jacobian.sum(dim=0).sign(), torch.ones(len(jacobian))


@pytest.mark.parametrize("method", [Shares(), Signs()])
def test_losses_that_a_method_changes_in_place_stay(method: Weighting) -> None:
    _, losses = two_losses()
    values = torch.stack(losses).detach()
    out = Balancer(method).backward(losses)
    torch.testing.assert_close(out.total, (out.weights * values).sum())


class Halving(LossWeighting):
    def __init__(self) -> None:
        self.own = torch.ones(2, dtype=torch.float64)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return self.own.mul_(0.5)


def test_weights_of_earlier_steps_stay() -> None:
    trunk, balancer = nn.Linear(3, 2).double(), Balancer(Halving())
    results = []
    for _ in range(2):
        z = trunk(torch.ones(5, 3).double())
        results.append(balancer.backward([z[:, 0].square().mean(), z[:, 1].square().mean()]))
    assert [out.weights.tolist() for out in results] == [[0.5, 0.5], [0.25, 0.25]]


@pytest.mark.parametrize("base", [LossWeighting, GramianWeighting])
def test_weights_carry_no_graph(base: type[Weighting]) -> None:
    learned = torch.ones(2, requires_grad=True)
    _, losses = two_losses()
    out = Balancer(returning(2 * learned, base)).backward(losses)
    assert not out.weights.requires_grad
    assert out.weights.tolist() == [2.0, 2.0]


class Entries(Weighting):
    requires = "jacobian"

    def __init__(self, result: Any) -> None:
        self.result = result

    def weigh(self, kernel: Any, losses: Any, tasks: Any) -> Tensor:
        raise AssertionError

    def combine(self, jacobian: Tensor, losses: Any = None, tasks: Any = None) -> Any:
        return self.result(jacobian)


@pytest.mark.parametrize("source", ["exact", "representation"])
@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda j: j.sum(0), TypeError, "two tensors"),
        (lambda j: (j.sum(0), None), TypeError, "two tensors"),
        (lambda j: (j.sum(0)[:3], torch.ones(2)), ValueError, r"returned \(3,\) and \(2,\)"),
        (lambda j: (j, torch.ones(2)), ValueError, "combine must return a gradient of shape"),
        (lambda j: (j.sum(0), torch.ones(3)), ValueError, r"and \(3,\)"),
        (lambda j: (j.sum(0) * math.nan, torch.ones(2)), NonFiniteError, "weighted gradient"),
    ],
)
def test_what_a_combination_returns(
    result: Any, error: type[Exception], message: str, source: Any
) -> None:
    trunk, losses = two_losses()
    with pytest.raises(error, match=message):
        Balancer(Entries(result), source=source).backward(losses)
    assert trunk.weight.grad is None


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        ("ntkmtl", {"kernel": torch.eye(2)}, TypeError, "must be an ntkmtl.ExtendedNTK"),
        ("si", {"kernel": LOSSES}, TypeError, "passed by name, losses="),
        ("si", {"losses": [1.0, 2.0]}, TypeError, "losses must be a tensor"),
        ("si", {"losses": torch.ones(2, 2)}, ValueError, r"shape \(k,\), found \(2, 2\)"),
        ("si", {"losses": torch.tensor(1.0)}, ValueError, r"shape \(k,\), found \(\)"),
        ("si", {"losses": torch.ones(0)}, ValueError, r"found \(0,\)"),
        ("pinn-ntk", {"kernel": KERNEL, "losses": torch.ones(3)}, ValueError, "has 2 tasks"),
        ("dwa", {"losses": LOSSES, "tasks": [0, 1]}, ValueError, "positions of the 2 tasks"),
        ("dwa", {"losses": LOSSES, "tasks": torch.tensor([0])}, ValueError, "positions of the 2"),
        ("dwa", {"losses": LOSSES, "tasks": torch.tensor([1, 1])}, ValueError, "each once"),
        ("dwa", {"losses": LOSSES, "tasks": torch.tensor([0, -1])}, ValueError, "from 0"),
        ("dwa", {"losses": LOSSES, "tasks": torch.tensor([5, 7])}, ValueError, "for 2 tasks"),
        ("imtl", {"kernel": KERNEL, "losses": LOSSES, "tasks": torch.tensor([0, 5])}, ValueError,
         "IMTL keeps a state for 2 tasks, found the positions .0, 5."),
    ],
)  # fmt: skip
def test_what_a_method_is_given(
    method: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    weighting = create(method)
    weighting.prepare(2, torch.device("cpu"))
    with pytest.raises(error, match=message):
        weighting(**arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", names())
def test_no_weights_of_numbers_that_are_not_finite(method: str, value: float) -> None:
    """A NaN compares as false, and many solvers would end at finite weights."""
    weighting = create(method)
    bad = ExtendedNTK(torch.tensor([[4.0, 1.0], [1.0, value]]).reshape(2, 1, 2, 1))
    wrong = torch.tensor([1.0, value])
    if weighting.requires == "losses":
        with pytest.raises(ValueError, match=f"losses must be finite, found {value}"):
            weighting(losses=wrong)
    elif weighting.requires != "jacobian":
        with pytest.raises(ValueError, match=f"kernel must be finite, found {value}"):
            weighting(bad, losses=LOSSES)
        with pytest.raises(ValueError, match=f"losses must be finite, found {value}"):
            weighting(KERNEL, losses=wrong)


def test_a_sum_that_overflows_is_of_finite_numbers() -> None:
    large = torch.full((2,), 2e38)
    assert create("ls")(losses=large).tolist() == [1.0, 1.0]
    kernel = ExtendedNTK(blocks=torch.full((2, 1, 1), 2e38))
    assert create("ntkmtl")(kernel).tolist() == [1.0, 1.0]


def test_an_index_error_of_a_method_is_its_own() -> None:
    class Wrong(LossWeighting):
        def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
            return losses[[5, 6]]

    with pytest.raises(IndexError, match="out of bounds"):
        Wrong()(losses=LOSSES)


@pytest.mark.parametrize("method", ["graddrop", "trimmed-mean", "moco", "excess-mtl", "db-mtl"])
@pytest.mark.parametrize("tasks", [[0, 1], torch.tensor([0]), torch.tensor([0, 0])])
def test_positions_of_a_combination(method: str, tasks: Any) -> None:
    with pytest.raises(ValueError, match="positions of the 2 tasks"):
        create(method).combine(torch.eye(2), LOSSES, tasks)


@pytest.mark.parametrize("method", ["moco", "excess-mtl", "db-mtl"])
def test_a_combination_of_more_tasks_than_before(method: str) -> None:
    weighting = create(method)
    weighting.combine(torch.eye(2), LOSSES)
    with pytest.raises(ValueError, match=f"{method} keeps a state for 2 tasks, found the pos"):
        weighting.combine(torch.eye(3), torch.ones(3))


@pytest.mark.parametrize("method", ["graddrop", "trimmed-mean", "moco", "excess-mtl", "db-mtl"])
@pytest.mark.parametrize(
    ("jacobian", "losses", "error", "message"),
    [
        ([[1.0, 2.0]], None, TypeError, r"k gradients.*found <class 'list'>"),
        (torch.ones(2, 3, dtype=torch.int64), LOSSES, TypeError, "torch.int64"),
        (torch.ones(3), LOSSES, ValueError, r"found \(3,\)"),
        (torch.ones(0, 3), torch.ones(0), ValueError, r"found \(0, 3\)"),
        (torch.ones(2, 3), torch.ones(3), ValueError, "there are 2 gradients"),
        (torch.ones(2, 3), [1.0, 2.0], TypeError, "losses must be a tensor"),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.cfloat), TypeError, "k real numbers"),
    ],
)
def test_what_a_combination_is_given(
    method: str, jacobian: Any, losses: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        create(method).combine(jacobian, losses)


class Speechless(Weighting):
    def weigh(self, kernel: Any, losses: Any, tasks: Any) -> Tensor:
        return torch.ones(2)


def test_a_class_must_say_what_it_reads() -> None:
    with pytest.raises(TypeError, match=r"Speechless\.requires must be one of losses, eigenvalues"):
        Balancer(Speechless())
    with pytest.raises(TypeError, match=r"Speechless\.requires must be one of losses, eigenvalues"):
        Balancer(f"{__file__}:Speechless")


def test_an_exponent_beyond_all_use() -> None:
    trunk, losses = two_losses()
    with pytest.raises(NonFiniteError, match="weight of task"):
        Balancer("ntkmtl", exponent=1e4).backward(losses)
    assert trunk.weight.grad is None


@pytest.mark.parametrize("state", [None, [1]])
def test_a_state_is_a_dict(state: Any) -> None:
    with pytest.raises(TypeError, match="is a dict"):
        create("dwa").load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [[1.0]]}, "values must be a tensor"),
        ({"blocks": torch.ones(2, 1, 1, dtype=torch.cfloat)}, "blocks must be .* real numbers"),
        ({"blocks": torch.ones(2, 1, 1), "shares": [[1.0], [1.0]]}, "shares must be a tensor"),
    ],
)
def test_what_a_kernel_is_made_of(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ExtendedNTK(**arguments)
