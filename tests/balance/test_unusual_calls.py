"""Calls of ``backward`` that are rare, and none of them silently wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, NonFiniteError
from ntkmtl.balance._state import pack, unpack


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(2))
        self.x, self.y = torch.randn(8, 5), torch.randn(8, 2)

    def losses(self) -> list[Tensor]:
        z = self.trunk(self.x).tanh()
        return [10.0**i * (h(z) - self.y).square().mean() for i, h in enumerate(self.heads)]


# ---------------------------------------------------------------------- vectors of losses

VECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda e: e.square().mean(0).sort().values,
    "norm": lambda e: torch.linalg.vector_norm(e, dim=0),
    "var": lambda e: e.var(0),
    "amax": lambda e: e.square().amax(0),
    "logsumexp": lambda e: e.logsumexp(0),
    "diagonal": lambda e: torch.diagonal(e.T @ e),
    "scatter": lambda e: torch.zeros(2).scatter_add(0, torch.tensor([1, 0]), e.square().mean(0)),
    "einsum": lambda e: torch.einsum("ij,j->i", torch.eye(2), e.square().mean(0)),
    "column": lambda e: (torch.eye(2) @ e.square().mean(0)[:, None])[:, 0],
    "row": lambda e: (e.square().mean(0)[None] @ torch.eye(2))[0],
    "convolution": lambda e: nn.functional.conv1d(
        e.square().mean(0)[None, None], torch.ones(1, 1, 1)
    ).flatten(),
    "padding": lambda e: nn.functional.pad(e.square().mean(0)[None], (0, 0))[0],
}
PARTS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "unbind": lambda v: list(v),
    "select": lambda v: [v[0], v[1]],
    "split": lambda v: [part.sum() for part in v.split(1)],
    "slice": lambda v: [v[:1].sum(), v[1:].sum()],
    "index": lambda v: [v[torch.tensor([0])].sum(), v[torch.tensor([1])].sum()],
    "scaled": lambda v: [3 * v[0], v[1] / 2],
    "scaled whole": lambda v: list(v * torch.tensor([3.0, 0.5])),
}


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("part", PARTS)
def test_a_vector_of_losses_is_no_representation(vector: str, part: str) -> None:
    net = Net()

    def losses() -> list[Tensor]:
        return PARTS[part](VECTORS[vector](net.heads[0](net.trunk(net.x)) - net.y))

    with pytest.raises(ValueError, match=r"shares a tensor without samples.*\(.*2.*\)"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses())
    out = Balancer("ntkmtl-auto").backward(losses())
    exact = []
    for loss in losses():
        parameters = [*net.heads[0].parameters(), *net.trunk.parameters()]
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        exact.append(sum(float(g.square().sum()) for g in found))
    assert out.eigenvalues is not None
    torch.testing.assert_close(out.eigenvalues, torch.tensor(exact), rtol=1e-4, atol=0)


MATRIX = torch.tensor([[1.0, 0.5], [0.25, 2.0]])
MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "matrix and vector": lambda v: MATRIX.mv(v),
    "matrix and column": lambda v: (MATRIX @ v[:, None])[:, 0],
    "product and sum": lambda v: (MATRIX * v).sum(1),
    "einsum": lambda v: torch.einsum("ij,j->i", MATRIX, v),
    "linear": lambda v: nn.functional.linear(v, MATRIX),
    "convolution": lambda v: nn.functional.conv1d(
        v[None, None], torch.ones(1, 1, 3), padding=1
    ).flatten(),
}
NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda v: v.log(),
    "sqrt": lambda v: v.sqrt(),
    "power": lambda v: v**3,
    "clamp": lambda v: v.clamp(max=1e6),
    "times another": lambda v: v * v.flip(0),
    "softplus": nn.functional.softplus,
}
REDUCED: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda e: torch.linalg.vector_norm(e, dim=0),
    "norm of columns": lambda e: torch.func.vmap(lambda c: c.norm(), 1)(e),
    "var": lambda e: e.var(0),
    "amax": lambda e: e.square().amax(0),
    "logsumexp": lambda e: e.logsumexp(0),
    "softplus of norm": lambda e: nn.functional.softplus(torch.linalg.vector_norm(e, dim=0)),
    "diagonal": lambda e: torch.diagonal(e.T @ e),
    "einsum": lambda e: torch.einsum("bi,bi->i", e, e),
    "weights of samples": lambda e: (torch.ones(1, len(e)) @ e.square())[0],
    "stack of norms": lambda e: torch.stack([e[:, 0].norm(), 2 * e.norm()]),
}


@pytest.mark.parametrize("vector", REDUCED)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("nonlinear", NONLINEAR)
def test_mixed_losses_are_no_representation(vector: str, mix: str, nonlinear: str) -> None:
    net = Net()
    v = REDUCED[vector](net.heads[0](net.trunk(net.x)) - net.y)
    losses = list(NONLINEAR[nonlinear](MIXES[mix](v)))
    with pytest.raises(ValueError, match="shares a tensor without samples"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses)


@pytest.mark.parametrize("mix", ["matrix and vector", "product and sum"])
@pytest.mark.parametrize("nonlinear", ["log", "sqrt", "power", "clamp"])
def test_mixed_means_are_followed_to_the_outputs(mix: str, nonlinear: str) -> None:
    net = Net()
    outputs = net.heads[0](net.trunk(net.x))
    losses = list(NONLINEAR[nonlinear](MIXES[mix]((outputs - net.y).square().mean(0))))
    expected = [
        float(torch.autograd.grad(loss, outputs, retain_graph=True)[0].square().sum())
        for loss in losses
    ]
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses)
    assert out.eigenvalues is not None
    torch.testing.assert_close(out.eigenvalues, torch.tensor(expected), rtol=1e-4, atol=0)


# Outputs of shape (B,) or (B, 2) and the tensor made by their network's last operation.
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda o: o,
    "one column": lambda o: o[:, 0],
    "softplus": nn.functional.softplus,
    "softplus of a column": lambda o: nn.functional.softplus(o[:, 0]),
    "norm of a row": lambda o: torch.linalg.vector_norm(o, dim=1),
    "logsumexp": lambda o: o.logsumexp(1),
    "logsumexp, transposed": lambda o: o.T.logsumexp(0),
    "softmax": lambda o: o.softmax(1),
    "centered": lambda o: nn.functional.softplus(o[:, 0] - o[:, 0].mean()),
    "graph": lambda o: (torch.ones(len(o), len(o)) @ o)[:, 0],
    "fixed projection": lambda o: o @ torch.tensor([[1.0, 2.0], [3.0, 1.0]]),
    "sums of rows by index": lambda o: torch.zeros(2, 2).index_add(
        0, torch.arange(len(o)) % 2, o.tanh()
    ),
    "sum of all rows by index": lambda o: torch.zeros(1, 2).index_add(
        0, torch.zeros(len(o), dtype=torch.long), o.tanh()
    ),
}
TAILS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "columns": lambda o: list((o.flatten(1) - 3).square().mean(0).log()) if o.ndim > 1 else [],
    "apart": lambda o: [(o - 3).square().mean(), (o - 2).abs().mean()],
    "broadcast": lambda o: list(
        (o[None] - torch.tensor([3.0, 2.0]).view(2, *[1] * o.ndim)).square().flatten(1).mean(1)
    ),
}


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("tail", TAILS)
def test_losses_of_one_output_are_not_taken_for_a_vector_of_losses(outputs: str, tail: str) -> None:
    net = Net()
    losses = TAILS[tail](OUTPUTS[outputs](net.heads[0](net.trunk(net.x))))
    if not losses:
        return
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses)
    assert out.eigenvalues is not None
    assert bool((out.eigenvalues > 0).all())


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(
    "losses",
    [
        lambda e: list(e.square().mean(0)),
        lambda e: [(e[:, i] * e[:, i]).mean() for i in range(2)],
        lambda e: list(e.square().mean(0) * torch.tensor([1.0, 10.0])),
        lambda e: list((e**4).mean(0)),
    ],
)
def test_outputs_for_one_sample_are_a_representation(
    samples: int, losses: Callable[[Tensor], list[Tensor]]
) -> None:
    net = Net()
    outputs = net.heads[0](net.trunk(net.x[:samples]))
    found = losses(outputs - net.y[:samples])
    expected = [
        float(torch.autograd.grad(loss, outputs, retain_graph=True)[0].square().sum())
        for loss in found
    ]
    out = Balancer("ntkmtl-sr", minibatches=1).backward(found)
    assert out.eigenvalues is not None
    ratio = out.eigenvalues / torch.tensor(expected)
    torch.testing.assert_close(ratio, ratio[:1].expand(2), rtol=1e-5, atol=0)


# ---------------------------------------------------------------------- outside the balance


@pytest.mark.parametrize("method", ["ls", "ntkmtl-auto"])
def test_extra_counts_in_a_batch_without_labels(method: str) -> None:
    net = Net()
    balancer = Balancer(method, tasks=2)
    extra = net.trunk.weight.square().sum()
    out = balancer.backward([None, None], extra=extra, scale=0.5)
    torch.testing.assert_close(net.trunk.weight.grad, net.trunk.weight.detach())
    assert out.weights.tolist() == [0.0, 0.0]
    torch.testing.assert_close(out.total, extra.detach())
    assert net.heads[0].weight.grad is None


def test_extra_alone_under_a_scaler() -> None:
    net = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    before = net.trunk.weight.detach().clone()
    balancer = Balancer(tasks=2)
    out = balancer.backward([None, None], extra=net.trunk.weight.sum() * math.inf, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert out.skipped
    assert torch.equal(net.trunk.weight, before)
    optimizer.zero_grad()
    balancer.backward([None, None], extra=net.trunk.weight.sum(), scaler=scaler)
    scaler.step(optimizer)
    torch.testing.assert_close(net.trunk.weight.detach(), before - 1.0)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_extra_that_is_no_number(labels: bool, constant: bool) -> None:
    net = Net()
    extra = torch.tensor(math.nan) if constant else net.trunk.weight.sum() * math.nan
    with pytest.raises(NonFiniteError, match="task extra is nan"):
        Balancer(tasks=2).backward(net.losses() if labels else [None, None], extra=extra)
    assert net.trunk.weight.grad is None


def test_extra_is_real() -> None:
    net = Net()
    with pytest.raises(ValueError, match="extra is complex"):
        Balancer().backward(net.losses(), extra=net.trunk.weight.sum() * 1j)


# ---------------------------------------------------------------------- modes and arguments


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-auto", "fairgrad", "graddrop"])
def test_backward_may_stand_where_gradients_are_off(method: str, mode: Any) -> None:
    usual, other = Net(), Net()
    expected = Balancer(method).backward(usual.losses()).weights
    losses = other.losses()
    with mode():
        found = Balancer(method).backward(losses).weights
    assert torch.equal(found, expected)
    assert torch.equal(usual.trunk.weight.grad, other.trunk.weight.grad)
    other.trunk.weight.grad.add_(1.0)  # an ordinary tensor


@pytest.mark.parametrize("method", ["ls", "ntkmtl-auto"])
def test_a_dict_may_leave_out_every_task(method: str) -> None:
    net = Net()
    balancer = Balancer(method, tasks=["a", "b"])
    assert balancer.backward({}).weights.tolist() == [0.0, 0.0]
    weights = balancer.backward(dict(zip("ab", net.losses(), strict=True))).weights
    assert bool((weights > 0).all())
    with pytest.raises(ValueError, match="losses is empty"):
        Balancer(method).backward({})


def test_sets_have_no_order() -> None:
    with pytest.raises(TypeError, match="a set has no order"):
        Balancer().backward(set(Net().losses()))
    with pytest.raises(TypeError, match="a set has none"):
        Balancer(tasks={"a", "b"})


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        (torch.ones(2, 0), ValueError, r"found \(2, 0\)"),
        (torch.ones(2, 8) * 1j, TypeError, "real numbers, found torch.complex"),
    ],
)
def test_counts(counts: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Balancer().backward(Net().losses(), counts=counts)


@pytest.mark.parametrize("option", [{"source": ""}, {"source": []}, {"pooling": ""}])
def test_empty_options_are_unknown_ones(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        Balancer("ntkmtl-sr", **option)


def test_corrected_needs_a_trunk() -> None:
    with pytest.raises(ValueError, match="give trunk, or leave it out"):
        Balancer(corrected=True)


class HalfARecorder:
    def wants(self, step: int) -> bool:
        return True

    def __call__(self, snapshot: Any) -> None:
        raise AssertionError


def test_a_recorder_must_say_what_it_records() -> None:
    with pytest.raises(TypeError, match="has wants, source, minibatches, pooling"):
        Balancer(record=HalfARecorder())  # type: ignore[arg-type]


def test_the_input_of_a_last_layer_may_be_named() -> None:
    weights = []
    for named in (False, True):
        net = Net()
        balancer = Balancer("ntkmtl-tk", last_layer=net.trunk, minibatches=1)
        z = net.trunk(input=net.x) if named else net.trunk(net.x)
        weights.append(balancer.backward([z.square().mean(), (z - 1).abs().mean()]).weights)
    assert torch.equal(*weights)


def test_a_last_layer_that_ran_again() -> None:
    net = Net()
    balancer = Balancer("ntkmtl-tk", last_layer=net.trunk, minibatches=1)
    losses = net.losses()
    net.trunk(net.x)
    with pytest.raises(ValueError, match="last_layer= remembers are those of its last run"):
        balancer.backward(losses)


# ---------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ntkmtl", {}),
        ("ntkmtl", {"weight_heads": True}),
        ("ntkmtl", {"memory_budget": 0}),
        ("ntkmtl", {"hooked": True}),
        ("ntkmtl-auto", {}),
        ("fairgrad", {"hooked": True}),
        ("graddrop", {}),
    ],
)
@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize("accumulated", [True, False])
def test_a_gradient_of_a_head_that_is_no_number(
    method: str, options: dict[str, Any], around: bool, accumulated: bool
) -> None:
    net = Net()
    own = nn.Parameter(torch.zeros(1))
    parameters = [*net.parameters(), own]
    if accumulated:
        for p in parameters:
            p.grad = torch.ones_like(p)
    losses = net.losses()
    losses[0] = losses[0] + (own * 0).sqrt().sum()  # 0, with an infinite slope times 0
    if around:
        losses[1] = losses[1] + net.trunk.weight.square().sum()
    with pytest.raises(NonFiniteError, match="gradient"):
        Balancer(method, **options).backward(losses)
    for p in parameters:
        assert p.grad is None if not accumulated else bool((p.grad == 1).all())


# ---------------------------------------------------------------------- states


@pytest.mark.parametrize(
    "state",
    [
        {"a": {"b": torch.zeros(3)}, "a.b": torch.ones(2)},
        {"a": {"tensor": torch.ones(2)}},
        {"json": torch.ones(2)},
        {"a": [torch.ones(2), {"b": torch.zeros(1)}, 3]},
    ],
)
def test_a_state_comes_back(state: dict[str, Any]) -> None:
    packed = pack(state)
    assert len(packed) == 1 + str(state).count("tensor(")
    assert str(unpack(packed)) == str(state)


@pytest.mark.parametrize("entry", [object(), {1, 2}, {1: 2}, {"tensor": "a"}])
def test_a_state_that_cannot_be_kept(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"state|stand alone"):
        pack({"weighting": entry})


def test_a_state_without_its_memory() -> None:
    whole = unpack(Balancer("ntkmtl").state_dict())
    for memory in (None, {}, {**whole["memory"], "more": 1}):
        with pytest.raises(ValueError, match="its memory holds"):
            Balancer("ntkmtl").load_state_dict(pack({**whole, "memory": memory}))


# --------------------------------------------------------------------------- explain


def test_explain_checks_features_as_backward_does() -> None:
    net = Net()
    a, b, c = (net.trunk(net.x) * factor for factor in (1.0, 2.0, 3.0))
    first, last = net.heads[0](a).square().mean(), net.heads[1](c).square().mean()
    found = Balancer().explain([first, None, last], [a, None, c])
    assert found.features == "they cut every path"
    mixed = [net.heads[0](a + b).square().mean(), b.square().mean(), last]
    text = Balancer().explain(mixed, [a, b, c]).features
    assert text.startswith("the loss of task 0 also depends on the features of task 1")
    with pytest.raises(ValueError, match="also depends on the features of task 1"):
        Balancer("ntkmtl-sr", minibatches=1).backward(mixed, [a, b, c])
    states, _ = nn.GRU(5, 8)(torch.randn(7, 12, 5))
    end = states[-1:] * 1.0  # (1, 12, 8)
    losses = [states.square().mean(), end.square().mean()]
    found = Balancer(batch_dim=1).explain(losses, (states, end))
    assert found.features == "they cut every path"
