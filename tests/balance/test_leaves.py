"""Leaves that require a gradient and are not ``nn.Parameter``, and parameters frozen too late."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from ntkmtl import Balancer, NonFiniteError, branch, extended_ntk
from ntkmtl.graph import find_cut

DOUBLE = torch.float64
WEIGHING = [
    ("ntkmtl-auto", {}),
    ("ntkmtl", {}),
    ("ntkmtl-sr", {"minibatches": 1}),
    ("mgda", {}),
    ("mgda", {"source": "representation"}),
    ("ls", {}),
]
COMBINING = ["moco", "graddrop"]


class Net:
    """A trunk with two heads, log variances that are plain tensors, and inputs with gradients."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.trunk = nn.Sequential(
            nn.Linear(5, 6, dtype=DOUBLE), nn.Tanh(), nn.Linear(6, 4, dtype=DOUBLE), nn.Tanh()
        )
        self.heads = nn.ModuleList(nn.Linear(9, 2, dtype=DOUBLE) for _ in range(3))
        self.x = torch.randn(8, 5, dtype=DOUBLE, requires_grad=True)
        self.scales = [torch.full((), 0.3 * i, dtype=DOUBLE, requires_grad=True) for i in range(3)]
        self.common = torch.full((), 0.2, dtype=DOUBLE, requires_grad=True)
        self.parameters = [*self.trunk.parameters(), *self.heads.parameters()]
        self.inputs = [self.x.detach()[2 * i : 2 * i + 3].clone() for i in range(3)]
        self.plain = [self.x, *self.scales, self.common, *(x.requires_grad_() for x in self.inputs)]

    def scaled(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        errors = [(out - 10.0**i).square().mean() for i, out in enumerate(outputs)]
        return [(-s).exp() * e + s for s, e in zip(self.scales, errors, strict=True)]

    def beside(self, z: Tensor, other: Tensor) -> list[Tensor]:
        none = torch.zeros_like(other)
        return [h(torch.cat([z, other if i else none], 1)) for i, h in enumerate(self.heads)]

    def skip(self) -> list[Tensor]:
        """The input enters two heads beside the trunk's output."""
        return self.scaled(self.beside(self.trunk(self.x), self.x))

    def moved(self) -> list[Tensor]:
        """What is computed from the input alone enters two heads."""
        return self.scaled(self.beside(self.trunk(self.x), 2 * self.x + 1))

    def factor(self) -> list[Tensor]:
        """One learned factor for two losses."""
        first, *others = self.scaled(self.beside(self.trunk(self.x), self.x.detach()))
        return [first, *((-self.common).exp() * loss + self.common for loss in others)]

    def batches(self) -> list[Tensor]:
        """The trunk runs once for each task, and each head reads its input too."""
        return self.apart([self.x[2 * i : 2 * i + 3] for i in range(3)])

    def own(self) -> list[Tensor]:
        """The same, where the inputs of each task are tensors of their own."""
        return self.apart(self.inputs)

    def apart(self, own: Sequence[Tensor]) -> list[Tensor]:
        rows = [torch.cat([self.trunk(x), x.cos()], 1) for x in own]
        return self.scaled([h(row) for h, row in zip(self.heads, rows, strict=True)])

    def columns(self) -> list[Tensor]:
        """Losses are entries of one vector."""
        return list(torch.stack(self.skip()).square().unbind())


FORMS: dict[str, Callable[[Net], list[Tensor]]] = {
    "skip": Net.skip,
    "moved": Net.moved,
    "factor": Net.factor,
    "batches": Net.batches,
    "own": Net.own,
    "columns": Net.columns,
}


def weighted(losses: Sequence[Tensor], leaves: Sequence[Tensor], weights: Any) -> list[Tensor]:
    """The gradient of the weighted sum, loss by loss."""
    total = [torch.zeros_like(p) for p in leaves]
    for loss, weight in zip(losses, weights, strict=True):
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        for t, g in zip(total, found, strict=True):
            t += 0.0 if g is None else float(weight) * g
    return total


def assert_filled(leaves: Sequence[Tensor], expected: Sequence[Tensor], factor: int = 1) -> None:
    for leaf, gradient in zip(leaves, expected, strict=True):
        found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(found, factor * gradient, rtol=1e-9, atol=1e-10)


def balancer_for(method: str, options: dict[str, Any], form: str, weight_heads: bool) -> Balancer:
    if form in ("batches", "own") and method == "mgda":
        options = {"source": "exact"}  # blocks between tasks do not exist otherwise
    return Balancer(method, weight_heads=weight_heads, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("method", "options"), WEIGHING)
def test_every_leaf_gets_the_weighted_gradient_in_every_step(
    method: str, options: dict[str, Any], form: str
) -> None:
    net = Net()
    balancer = balancer_for(method, options, form, True)
    for _ in range(5):
        for leaf in (*net.parameters, *net.plain):
            leaf.grad = None
        out = balancer.backward(FORMS[form](net))
        leaves = [*net.parameters, *net.plain]
        assert_filled(leaves, weighted(FORMS[form](net), leaves, out.weights))
    balancer.backward(FORMS[form](net))  # accumulates
    assert all(s.grad is not None for s in net.scales)


@pytest.mark.parametrize("form", ["skip", "moved", "factor", "batches", "own"])
@pytest.mark.parametrize(("method", "options"), WEIGHING[1:5])
def test_own_leaves_get_the_plain_gradient_where_heads_are_not_weighted(
    method: str, options: dict[str, Any], form: str
) -> None:
    net = Net()
    out = balancer_for(method, options, form, False).backward(FORMS[form](net))
    losses, ones = FORMS[form](net), torch.ones(3)
    own = [*net.heads.parameters(), *net.scales]
    shared = list(net.trunk.parameters())
    assert_filled(own, weighted(losses, own, ones))
    assert_filled(shared, weighted(losses, shared, out.weights))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ntkmtl", {"every": 2}),
        ("ntkmtl", {"hooked": True}),
        ("ntkmtl-auto", {}),
        ("ntkmtl-sr", {"minibatches": 1, "every": 2}),
        ("mgda", {"source": "representation", "every": 2}),
    ],
)
def test_so_do_shared_inputs_in_every_step(method: str, options: dict[str, Any]) -> None:
    net = Net()
    balancer = Balancer(method, weight_heads=False, **options)
    own, shared = [*net.heads.parameters(), net.x], list(net.trunk.parameters())
    for extra in (0, 0, 1):
        for leaf in (*net.parameters, *net.plain):
            leaf.grad = None
        z = net.trunk(net.x)
        losses = net.scaled(net.beside(z, net.x.detach()))
        every, ones = [*losses, *extra * [z.square().mean()]], torch.ones(3 + extra)
        plain = weighted(every, own, ones)
        single = [weighted([loss], shared, [1.0]) for loss in every]
        out = balancer.backward(losses, extra=every[3] if extra else None)
        assert_filled(own, plain)
        weights = torch.cat([out.weights.double(), ones[3:].double()])
        rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in single])
        found = torch.cat([p.grad.flatten() for p in shared])
        torch.testing.assert_close(found, weights @ rows, rtol=1e-9, atol=1e-10)


def test_weights_of_the_representation_apply_to_the_parameters_that_are_named() -> None:
    net = Net()
    chosen = list(net.trunk[2].parameters())
    balancer = Balancer("ntkmtl-sr", minibatches=1, every=2, weight_heads=False, shared=chosen)
    others = [*net.trunk[0].parameters(), *net.heads.parameters()]
    for _ in range(2):
        for leaf in net.parameters:
            leaf.grad = None
        out = balancer.backward(net.scaled(net.beside(net.trunk(net.x), net.x.detach())))
        losses = net.scaled(net.beside(net.trunk(net.x), net.x.detach()))
        assert_filled(chosen, weighted(losses, chosen, out.weights))
        assert_filled(others, weighted(losses, others, torch.ones(3)))


@pytest.mark.parametrize("form", ["skip", "moved", "factor", "batches", "own"])
@pytest.mark.parametrize("method", COMBINING)
def test_methods_of_entries_leave_inputs_the_plain_gradient(method: str, form: str) -> None:
    net = Net()
    Balancer(method, source="exact").backward(FORMS[form](net))
    leaves = [*net.heads.parameters(), *net.plain]
    assert_filled(leaves, weighted(FORMS[form](net), leaves, torch.ones(3)))


def test_entries_of_a_representation_with_an_input_around_it_raise() -> None:
    net = Net()
    with pytest.raises(ValueError, match="an input that requires a gradient enters a head around"):
        Balancer("graddrop", source="representation").backward(net.skip())
    assert all(leaf.grad is None for leaf in (*net.parameters, *net.plain))


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(("method", "options"), [*WEIGHING[:5], ("ntkmtl-tk", {})])
def test_an_input_around_named_features(method: str, options: dict[str, Any], views: bool) -> None:
    net = Net()

    def losses() -> tuple[list[Tensor], Any]:
        z = net.trunk(net.x)
        given: Any = branch(z, 3) if views else z
        read = given if views else [z] * 3
        outputs = [h(torch.cat([view, net.x], 1)) for h, view in zip(net.heads, read, strict=True)]
        return net.scaled(outputs), given

    values, given = losses()
    out = Balancer(method, weight_heads=True, **options).backward(values, features=given)
    leaves = [*net.parameters, *net.plain]
    assert_filled(leaves, weighted(losses()[0], leaves, out.weights))
    found = Balancer("ntkmtl-sr").explain(losses()[0], features=losses()[1])
    assert found.features == "no loss depends on them"  # of another run
    values, given = losses()
    text = Balancer("ntkmtl-sr").explain(values, features=given).features
    assert text == "they cut every path"


def test_the_kernel_of_an_input_that_goes_around_the_features() -> None:
    net = Net()
    z = net.trunk(net.x)
    losses = net.scaled(net.beside(z, net.x))
    wanted = [*net.trunk.parameters(), net.x]
    kernel = extended_ntk(losses, features=z, parameters=wanted)
    rows = [torch.cat([g.flatten() for g in weighted([loss], wanted, [1.0])]) for loss in losses]
    torch.testing.assert_close(kernel.gramian(), torch.stack(rows) @ torch.stack(rows).T)


def test_a_gradient_that_is_not_finite_fills_no_plain_leaf() -> None:
    net = Net()
    balancer = Balancer("ntkmtl", every=10)
    balancer.backward(net.skip())
    for kept in (None, torch.ones((), dtype=DOUBLE)):
        for leaf in (*net.parameters, *net.plain):
            leaf.grad = None
        net.scales[0].grad = None if kept is None else kept.clone()
        net.x = net.x.detach().requires_grad_()  # of the next batch
        net.plain[0] = net.x
        losses = net.skip()
        net.x.register_hook(lambda g: g * float("inf"))
        with pytest.raises(NonFiniteError, match="gradient"):
            balancer.backward(losses)
        assert all(leaf.grad is None for leaf in (*net.parameters, net.x, *net.scales[1:]))
        assert (net.scales[0].grad is None) == (kept is None)
        assert kept is None or torch.equal(net.scales[0].grad, kept)


# --------------------------------------------------------------------------- functional trunks


def functional(x: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    return (torch.tanh(x @ leaves[0]) @ leaves[1]).relu()


def make_functional() -> tuple[list[Tensor], nn.ModuleList, Callable[[], list[Tensor]]]:
    torch.manual_seed(0)
    leaves = [torch.randn(*size, dtype=DOUBLE, requires_grad=True) for size in ((5, 6), (6, 4))]
    heads = nn.ModuleList(nn.Linear(4, 2, dtype=DOUBLE) for _ in range(2))
    x = torch.randn(7, 5, dtype=DOUBLE)

    def losses() -> list[Tensor]:
        z = functional(x, leaves)
        return [(h(z) - 10.0 * i).square().mean() for i, h in enumerate(heads)]

    return leaves, heads, losses


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl"])
def test_plain_tensors_that_tasks_share_are_the_shared_parameters(method: str) -> None:
    leaves, heads, losses = make_functional()
    cut = find_cut(losses())
    assert {id(p) for p in cut.shared} == {id(p) for p in leaves}
    assert cut.clean
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = Balancer(method, weight_heads=True).backward(losses())
    rows = [weighted([loss], leaves, [1.0]) for loss in losses()]
    expected = torch.stack([sum((g.square().sum() for g in row), torch.zeros(())) for row in rows])
    torch.testing.assert_close(out.eigenvalues, expected, rtol=1e-9, atol=0.0)
    all_leaves = [*leaves, *heads.parameters()]
    assert_filled(all_leaves, weighted(losses(), all_leaves, out.weights))


def test_a_frozen_trunk_behind_an_input_that_requires_a_gradient() -> None:
    net = Net()
    net.trunk.requires_grad_(False)
    z = net.trunk(net.x)
    losses = net.scaled(net.beside(z, net.x.detach()))
    out = Balancer("ntkmtl", weight_heads=True).backward(losses)
    losses = net.scaled(net.beside(net.trunk(net.x), net.x.detach()))
    rows = [torch.autograd.grad(loss, net.x, retain_graph=True)[0] for loss in losses]
    expected = torch.stack([row.square().sum() for row in rows])
    torch.testing.assert_close(out.eigenvalues, expected, rtol=1e-9, atol=0.0)
    assert_filled([net.x], weighted(losses, [net.x], out.weights))


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "ntkmtl-sr", "mgda"])
def test_networks_that_share_inputs_only_share_nothing(method: str) -> None:
    torch.manual_seed(0)
    nets = [nn.Linear(2, 3, dtype=DOUBLE) for _ in range(2)]
    points = torch.rand(6, 2, dtype=DOUBLE, requires_grad=True)
    scaled = 2 * points - 1
    losses = [(10.0**i * net(scaled)).square().mean() for i, net in enumerate(nets)]
    said = re.escape(
        "only tensors of shape (6, 2) that require a gradient and are not nn.Parameter"
    )
    with pytest.warns(UserWarning, match=said):
        out = Balancer(method).backward(losses)
    assert out.weights.tolist() == [1.0, 1.0]
    assert points.grad is not None


def test_with_a_shared_parameter_plain_leaves_are_inputs() -> None:
    net = Net()
    cut = find_cut(net.skip())
    assert {id(p) for p in cut.shared} == {id(p) for p in net.trunk.parameters()}
    assert [len(own) for own in cut.heads] == [2, 2, 2]
    assert [len(own) for own in cut.own_leaves] == [3, 3, 3]


# --------------------------------------------------------------------------- frozen too late


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("frozen", ["head", "first", "trunk", "task"])
@pytest.mark.parametrize(
    ("method", "options"), [*WEIGHING, ("moco", {}), ("graddrop", {"source": "representation"})]
)
def test_parameters_frozen_after_the_forward_pass_are_left_out(
    method: str, options: dict[str, Any], frozen: str, named: bool
) -> None:
    net = Net()
    net.x = net.x.detach()
    parts = {"head": [net.heads[1]], "first": [net.trunk[0]], "trunk": [net.trunk]}
    parts["task"] = [net.trunk, net.heads[0]]

    def losses() -> tuple[list[Tensor], Tensor]:
        z = net.trunk(net.x)
        return net.scaled(net.beside(z, net.x)), z

    values, z = losses()
    for part in parts[frozen]:
        part.requires_grad_(False)
    features = {"features": z} if named and method != "ls" else {}
    whole = frozen in ("trunk", "task")
    balancer = Balancer(method, **options)
    if whole and method != "ls":
        found = balancer.explain(values)
        assert found.weights == "1 for every task, as they share nothing that is trained"
    if whole and features and balancer.options.source != "representation":
        with pytest.raises(ValueError, match="the trunk is frozen"):
            balancer.backward(values, **features)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = balancer.backward(values, **features)
    if whole and not named and method != "ls":
        assert "share no parameter that is trained" in str(said[0].message)
        assert out.weights.tolist() == [1.0] * 3
    live = [p for p in net.parameters if p.requires_grad]
    assert all(p.grad is None for p in net.parameters if not p.requires_grad)
    assert all(p.grad is not None for p in live)
    if method in ("moco", "graddrop"):
        return
    again, _ = losses()
    if live and not whole:
        shared = [p for p in net.trunk.parameters() if p.requires_grad]
        assert_filled(shared, weighted(again, shared, out.weights))


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "ntkmtl"])
def test_a_shared_embedding_frozen_after_the_forward_pass_is_no_way_around(method: str) -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(5, 4, dtype=DOUBLE))
    middle, head = nn.Linear(4, 4, dtype=DOUBLE), nn.Linear(4, 2, dtype=DOUBLE)
    rows = torch.tensor([0, 3, 1, 4])

    def losses() -> list[Tensor]:
        z = middle(table[rows]).tanh()
        return [(z @ table.T).square().mean(), head(z).square().mean()]

    values = losses()
    table.requires_grad_(False)
    out = Balancer(method, weight_heads=True, minibatches=1).backward(values)
    shared = list(middle.parameters())
    assert table.grad is None
    assert_filled(shared, weighted(losses(), shared, out.weights))


# --------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("where", ["trunk", "heads", "both"])
@pytest.mark.parametrize(
    "method", ["ls", "ntkmtl-auto", "ntkmtl", "ntkmtl-sr", "mgda", "moco", "graddrop"]
)
def test_one_hook_for_many_parameters(method: str, where: str) -> None:
    net = Net()
    net.x = net.x.detach()
    trunk, heads = list(net.trunk.parameters()), list(net.heads.parameters())
    hooked = {"trunk": trunk, "heads": heads, "both": [*trunk, *heads]}[where]
    seen: list[list[Tensor | None]] = []
    register_multi_grad_hook(hooked, lambda gradients: seen.append(list(gradients)))
    entries = method in ("moco", "graddrop")
    balancer = Balancer(method, **({} if entries else {"weight_heads": True, "minibatches": 1}))
    if entries and where != "trunk":  # heads with hooks need an ordinary pass
        with pytest.raises(ValueError, match="entry by entry"):
            balancer.backward(net.skip())
        return
    balancer.backward(net.skip())
    assert len(seen) == 1
    # Each gradient was seen once.
    for i, parameter in enumerate(hooked):
        (found,) = (gradients[i] for gradients in seen if gradients[i] is not None)
        torch.testing.assert_close(found, parameter.grad)


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-auto", "moco"])
def test_hooks_that_change_a_gradient_do_so_once(method: str) -> None:
    net, other = Net(), Net()
    weight = net.trunk[2].weight
    weight.register_hook(lambda g: 0.25 * g)
    out = Balancer(method).backward(net.skip())
    expected = Balancer(method).backward(other.skip())
    torch.testing.assert_close(out.weights, expected.weights)
    assert other.trunk[2].weight.grad is not None
    torch.testing.assert_close(weight.grad, 0.25 * other.trunk[2].weight.grad)
    assert len(weight._backward_hooks) == 1


@pytest.mark.parametrize("method", ["ntkmtl", "mgda"])
def test_one_hook_for_parameters_and_a_tensor_between_layers(method: str) -> None:
    net = Net()
    z = net.trunk(net.x)
    register_multi_grad_hook([z, *net.trunk.parameters()], lambda gradients: None)
    with pytest.raises(RuntimeError, match="register one hook for the parameters and another"):
        Balancer(method).backward(net.scaled(net.beside(z, net.x.detach())))
    assert all(p.grad is None for p in (*net.parameters, *net.plain))
