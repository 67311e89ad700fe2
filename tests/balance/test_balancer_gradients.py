"""``backward`` fills ``.grad`` with the gradient of the weighted sum, in all ways of filling it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernel import oracle
from kernel.oracle import EXACT, Case, make_case
from ntkmtl import Balancer, BalanceResult, ExtendedNTK, branch
from ntkmtl.weighting import accepted_options, create, names, spec
from placement import DTYPE

METHODS = [name for name in names() if name != "stl"]
OF_KERNEL = [name for name in METHODS if spec(name).requires != "losses"]
OF_ENTRIES = [name for name in METHODS if spec(name).requires == "jacobian"]
# These need more than one mini-batch, and so features to split.
OF_MINIBATCHES = [
    name for name in METHODS if spec(name).requires == "kernel" and name != "ntkmtl-x"
]
# Their heads get more than the gradients of their losses.
GUIDED = [name for name in METHODS if create(name).has_head_objective]
SEEDED = tuple(name for name in METHODS if "seed" in accepted_options(name))
FORMS = ["tensor", "branch", "hooked", "hooked-branch"]


def make_balancer(method: str, **options: Any) -> Balancer:
    if method in SEEDED:
        options.setdefault("seed", 0)
    return Balancer(method, **options)


def step(case: Case, balancer: Balancer, form: str = "tensor") -> BalanceResult:
    z = case.features()
    given = branch(z, len(case.heads)) if form.endswith("branch") else z
    return balancer.backward(case.losses(given), features=given)


def weighted_gradients(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], weights: Sequence[float] | Tensor
) -> list[Tensor]:
    """Gradients of sum_i w_i l_i, task by task."""
    total = [torch.zeros_like(p) for p in parameters]
    for loss, weight in zip(losses, weights, strict=True):
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for t, g in zip(total, grads, strict=True):
            if g is not None:
                t += float(weight) * g
    return total


def assert_grads(parameters: Sequence[nn.Parameter], expected: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, **EXACT)


def assert_weighted(
    case: Case, weights: Tensor, on_heads: Tensor, losses: Sequence[Tensor]
) -> None:
    assert_grads(case.shared, weighted_gradients(losses, case.shared, weights))
    heads = list(case.heads.parameters())
    assert_grads(heads, weighted_gradients(losses, heads, on_heads))


def assert_weighted_pair(
    case: Case, fresh: Case, losses: Sequence[Tensor], weights: Tensor, weight_heads: bool
) -> None:
    assert_grads(case.shared, weighted_gradients(losses, fresh.shared, weights))
    on_heads = weights if weight_heads else torch.ones(len(weights))
    heads = list(fresh.heads.parameters())
    assert_grads(list(case.heads.parameters()), weighted_gradients(losses, heads, on_heads))


def slopes_of(method: str, losses: list[Tensor]) -> Tensor:
    """Derivatives of what a method balances by the losses: of their logarithms, or 1."""
    values = torch.stack(losses).detach()
    return 1.0 / values if spec(method).defaults.get("log_losses") else torch.ones_like(values)


def combined_by_hand(
    case: Case, method: str, source: str
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Gradients of trunk and heads by a method that combines them, and the weights it reports."""
    rule = create(method, seed=0) if method in SEEDED else create(method)
    z = case.features()
    losses = case.losses(z)
    slopes = slopes_of(method, losses)
    if spec(method).defaults.get("log_losses"):
        losses = [loss.log() for loss in losses]
    over = case.shared if source == "exact" else [z]
    combined, weights = rule.combine(
        torch.stack([oracle.flat_gradient(loss, over) for loss in losses]),
        torch.stack(losses).detach(),
        torch.arange(len(losses)),
    )
    heads = weighted_gradients(losses, list(case.heads.parameters()), torch.ones(len(losses)))
    if source == "exact":
        sizes = [p.numel() for p in case.shared]
        parts = combined.split(sizes)
        trunk = [c.view_as(p) for c, p in zip(parts, case.shared, strict=True)]
    else:
        trunk = list(torch.autograd.grad(z, case.shared, combined.view_as(z)))
    return trunk, heads, weights * slopes


@pytest.mark.parametrize("weight_heads", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["representation", "exact"])
@pytest.mark.parametrize("method", OF_KERNEL)
def test_every_method_source_and_form(
    method: str, source: str, form: str, weight_heads: bool
) -> None:
    case = make_case()
    if source == "representation" and method in ("moco", "db-mtl"):
        with pytest.raises(ValueError, match="follows gradients over steps"):
            make_balancer(method, source=source)
        return
    hooked = True if form.startswith("hooked") else None
    options: dict[str, Any] = {"shared": case.shared} if source == "exact" else {}
    balancer = make_balancer(
        method, source=source, minibatches=2, hooked=hooked, weight_heads=weight_heads, **options
    )
    if method in (*OF_ENTRIES, *GUIDED) and hooked:
        said = "entry by entry" if method in OF_ENTRIES else "more than the gradient"
        with pytest.raises(ValueError, match=said):
            step(case, balancer, form)
        assert all(p.grad is None for p in case.parameters)
        return
    out = step(case, balancer, form)
    fresh = make_case()
    losses = fresh.losses(fresh.features())
    if method in OF_ENTRIES:
        expected, on_heads, weights = combined_by_hand(fresh, method, source)
        assert_grads(case.shared, expected)
        assert_grads(list(case.heads.parameters()), on_heads)
        torch.testing.assert_close(out.weights, weights, **EXACT)
        return
    on_heads = out.weights if weight_heads else slopes_of(method, losses)
    expected = weighted_gradients(losses, fresh.shared, out.weights)
    assert_grads(case.shared, expected)
    if method not in GUIDED:
        heads = list(fresh.heads.parameters())
        assert_grads(list(case.heads.parameters()), weighted_gradients(losses, heads, on_heads))
    assert out.weights.shape == (3,)
    assert out.weights.dtype == DTYPE
    assert (out.eigenvalues is not None) == (spec(method).requires == "eigenvalues")


@pytest.mark.parametrize("source", ["pooled", "blockwise", "kernel", "exact"])
@pytest.mark.parametrize("method", [m for m in OF_KERNEL if m not in OF_ENTRIES])
def test_weights_are_those_of_the_oracles_kernel(method: str, source: str) -> None:
    case = make_case()
    z = case.features()
    per_sample = case.per_sample(z)
    split = oracle.sizes(oracle.BATCH, 3)
    if source == "exact":
        values = oracle.exact(per_sample, case.shared, split)
        balancer = make_balancer(method, source="exact", minibatches=3)
    else:
        values = oracle.representation(per_sample, [z], split, source)
        balancer = make_balancer(method, source="representation", pooling=source, minibatches=3)
    compared = method in OF_MINIBATCHES and create(method).requires_cross_terms
    if compared and source == "blockwise":
        with pytest.raises(ValueError, match="pooling='blockwise'"):
            step(case, balancer)
        return
    shares = torch.tensor([split] * 3, dtype=torch.float64) / oracle.BATCH
    weighting = create(method, seed=0) if method in SEEDED else create(method)
    losses = case.losses(z)
    slopes = slopes_of(method, losses)
    values = values * slopes[:, None, None, None] * slopes[:, None]
    kernel = ExtendedNTK(values, shares=shares)
    expected = slopes * weighting(kernel, losses=torch.stack(losses).detach())
    out = step(case, balancer)
    rough = {"cagrad": 1e-4, "mgda": 1e-6}.get(method, 1e-9)
    near = {**EXACT, "rtol": max(rough, EXACT["rtol"]), "atol": max(rough, EXACT["atol"])}
    torch.testing.assert_close(out.weights, expected, **near)


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("method", [m for m in METHODS if spec(m).requires == "losses"])
def test_loss_only_methods(method: str, features: bool) -> None:
    case = make_case()
    balancer = make_balancer(method)
    z = case.features()
    losses = case.losses(z)
    out = balancer.backward(losses, features=z if features else None)
    assert out.kernel is None
    assert out.eigenvalues is None
    weighting = create(method, seed=0) if method in SEEDED else create(method)
    expected = weighting(losses=torch.stack(losses).detach())
    torch.testing.assert_close(out.weights, expected, **EXACT)
    fresh = make_case()
    losses = fresh.losses(fresh.features())
    expected_grads = weighted_gradients(losses, fresh.parameters, out.weights)
    assert_grads(case.parameters, expected_grads)


@pytest.mark.parametrize("name", oracle.TRUNKS)
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "nash-mtl"])
def test_every_trunk(method: str, name: str) -> None:
    case, fresh = make_case(name), make_case(name)
    balancer = Balancer(method, minibatches=3, batch_dim=case.batch_dim)
    z = case.features()
    buffers = [b.clone() for b in case.trunk.buffers()]
    out = balancer.backward(case.losses(z), features=z)
    # Batch-norm statistics are what the forward pass made them.
    assert all(torch.equal(a, b) for a, b in zip(buffers, case.trunk.buffers(), strict=True))
    losses = fresh.losses(fresh.features())
    assert_grads(case.shared, weighted_gradients(losses, fresh.shared, out.weights))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-sr", "nash-mtl"])
def test_gradients_accumulate(method: str, form: str) -> None:
    case, once = make_case(), make_case()
    hooked = True if form.startswith("hooked") else None
    for which in (case, once):
        make = make_balancer(method, hooked=hooked, weight_heads=True)
        if which is case:
            for p in case.parameters:
                p.grad = torch.full_like(p, 2.0)
            kept = [p.grad for p in case.parameters]
            step(case, make, form)
            step(case, make, form)
        else:
            step(once, make, form)
    # In place, as autograd does.
    assert all(p.grad is g for p, g in zip(case.parameters, kept, strict=True))
    assert_grads(case.parameters, [2.0 + 2.0 * p.grad for p in once.parameters])


@pytest.mark.parametrize("method", ["ntkmtl", "nash-mtl", "graddrop"])
def test_memory_budget_changes_nothing_else(method: str) -> None:
    grads = []
    for budget in (0, 1 << 30):
        case = make_case()
        step(case, make_balancer(method, memory_budget=budget, minibatches=2))
        grads.append([p.grad for p in case.parameters])
    for small, large in zip(*grads, strict=True):
        torch.testing.assert_close(small, large, **EXACT)


@pytest.mark.parametrize("method", ["ntkmtl", "nash-mtl"])
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_shared_may_be_a_part_of_the_trunk(method: str, budget: int) -> None:
    # The kernel of the last shared layer, say; the layers below must be trained all the same.
    case, fresh = make_case(), make_case()
    last = list(case.trunk[2].parameters())
    balancer = Balancer(method, shared=last, memory_budget=budget)
    z = case.features()
    per_sample = case.per_sample(z)
    values = oracle.exact(per_sample, last, [oracle.BATCH])
    out = balancer.backward([row.mean() for row in per_sample], features=z)
    torch.testing.assert_close(out.weights, create(method)(ExtendedNTK(values)), **EXACT)
    losses = fresh.losses(fresh.features())
    assert_grads(case.shared, weighted_gradients(losses, fresh.shared, out.weights))


@pytest.mark.parametrize(
    "method", [m for m in OF_KERNEL if m not in ("ntkmtl-tk", *OF_MINIBATCHES, *GUIDED)]
)
@pytest.mark.parametrize("weight_heads", [True, False])
def test_shared_parameters_without_features(method: str, weight_heads: bool) -> None:
    case, fresh = make_case(), make_case()
    balancer = make_balancer(
        method, source="exact", shared=case.shared, weight_heads=weight_heads, minibatches=1
    )
    per_sample = case.per_sample(case.features())
    out = balancer.backward([row.mean() for row in per_sample])
    losses = fresh.losses(fresh.features())
    if method in OF_ENTRIES:
        expected, on_heads, _ = combined_by_hand(fresh, method, "exact")
    else:
        expected = weighted_gradients(losses, fresh.shared, out.weights)
        weights = out.weights if weight_heads else slopes_of(method, losses)
        on_heads = weighted_gradients(losses, list(fresh.heads.parameters()), weights)
    assert_grads(case.shared, expected)
    assert_grads(list(case.heads.parameters()), on_heads)


# --------------------------------------------------------------------------- forms of input


def test_dict_of_losses_in_any_order() -> None:
    case, other = make_case(), make_case()
    plain = step(case, Balancer("ntkmtl-sr", minibatches=2))
    balancer = Balancer("ntkmtl-sr", minibatches=2, tasks=["a", "b", "c"])
    z = other.features()
    losses = dict(zip("abc", other.losses(z), strict=True))
    out = balancer.backward(dict(reversed(losses.items())), features=z)
    assert torch.equal(out.weights, plain.weights)
    assert_grads(other.parameters, [p.grad for p in case.parameters])


def test_losses_as_one_tensor() -> None:
    case, other = make_case(), make_case()
    plain = step(case, Balancer("ntkmtl-sr", minibatches=2))
    z = other.features()
    out = Balancer("ntkmtl-sr", minibatches=2).backward(torch.stack(other.losses(z)), features=z)
    torch.testing.assert_close(out.weights, plain.weights, **EXACT)
    assert_grads(other.parameters, [p.grad for p in case.parameters])


@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-sr", "nash-mtl", "graddrop"])
def test_losses_that_share_a_tail(method: str) -> None:
    case, fresh = make_case(), make_case()
    out = []
    for which in (case, fresh):
        z = which.features()
        outputs = torch.stack([head(z) for head in which.heads], dim=1)
        errors = nn.functional.mse_loss(outputs, which.targets.T, reduction="none")
        losses = errors.mean(0).unbind()
        if which is case:
            out = make_balancer(method, weight_heads=True).backward(losses, features=z)
        elif method == "graddrop":
            heads = list(fresh.heads.parameters())
            expected = weighted_gradients(losses, heads, torch.ones(3))
            assert_grads(list(case.heads.parameters()), expected)
        else:
            assert_grads(case.parameters, weighted_gradients(losses, fresh.parameters, out.weights))


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "nash-mtl"])
@pytest.mark.parametrize(
    ("form", "weight_heads"),
    [("tensor", True), ("tensor", False), ("branch", True), ("branch", False), ("hooked", True)],
)
def test_heads_that_tasks_share(method: str, form: str, weight_heads: bool) -> None:
    def build() -> tuple[Case, nn.Module]:
        case = make_case()
        torch.manual_seed(5)
        common = nn.Linear(5, 5).to(DTYPE)
        for i in (0, 2):
            case.heads[i].layers.insert(0, common)
        return case, common

    case, _ = build()
    fresh, _ = build()
    hooked = True if form == "hooked" else None
    out = step(case, Balancer(method, hooked=hooked, weight_heads=weight_heads), form)
    losses = fresh.losses(fresh.features())
    assert_weighted_pair(case, fresh, losses, out.weights, weight_heads)


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk"])
@pytest.mark.parametrize("weight_heads", [True, False])
@pytest.mark.parametrize("how", ["layers", "chunk", "unbind"])
def test_one_representation_per_task(method: str, weight_heads: bool, how: str) -> None:
    def build() -> tuple[Case, list[Tensor]]:
        case = make_case()
        torch.manual_seed(5)
        case.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 15)).to(DTYPE)
        z = case.features()
        own = {
            "layers": lambda: [torch.tanh(z[:, 5 * i : 5 * i + 5]) for i in range(3)],
            "chunk": lambda: list(z.chunk(3, dim=1)),
            "unbind": lambda: list(z.view(-1, 3, 5).unbind(1)),
        }[how]()
        return case, own

    case, own = build()
    balancer = Balancer(method, minibatches=2, weight_heads=weight_heads)
    out = balancer.backward(case.losses(own), features=own)
    fresh, own = build()
    assert_weighted_pair(case, fresh, fresh.losses(own), out.weights, weight_heads)


def test_gramian_methods_need_one_shared_representation() -> None:
    case = make_case()
    own = [case.features() for _ in range(3)]
    balancer = Balancer("nash-mtl", source="representation")
    with pytest.raises(ValueError, match="blocks between tasks"):
        balancer.backward(case.losses(own), features=own)
    out = Balancer("nash-mtl").backward(case.losses(own), features=own)
    fresh = make_case()
    losses = fresh.losses([fresh.features() for _ in range(3)])
    assert_grads(case.shared, weighted_gradients(losses, fresh.shared, out.weights))


# --------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("where", ["trunk", "heads"])
@pytest.mark.parametrize("kind", ["hook", "post_accumulate"])
@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-sr", "nash-mtl"])
def test_hooks_of_parameters_fire_once_with_the_whole_gradient(
    method: str, where: str, kind: str
) -> None:
    case, plain = make_case(), make_case()
    expected = step(plain, Balancer(method, weight_heads=True))
    parameter = next((case.trunk if where == "trunk" else case.heads).parameters())
    seen: list[Tensor] = []
    if kind == "hook":
        parameter.register_hook(lambda g: seen.append(g.clone()))
    else:
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    out = step(case, Balancer(method, weight_heads=True))
    torch.testing.assert_close(out.weights, expected.weights, **EXACT)
    assert_grads(case.parameters, [p.grad for p in plain.parameters])
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], parameter.grad, **EXACT)


@pytest.mark.parametrize("weight_heads", [True, False])
def test_hooks_fire_in_steps_that_reuse_weights(weight_heads: bool) -> None:
    case = make_case()
    balancer = Balancer("ntkmtl-sr", hooked=True, every=2, weight_heads=weight_heads)
    fired: list[int] = []
    head = next(case.heads.parameters())
    head.register_post_accumulate_grad_hook(lambda _: fired.append(1))
    for count in (1, 2, 3):
        step(case, balancer, "hooked-branch")
        assert len(fired) == count


# --------------------------------------------------------------------------- around the features


class Skipping(nn.Module):
    """A trunk whose hidden layer the heads read too, around its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.first(x))
        return hidden, self.second(hidden)


def skipping() -> Case:
    case = make_case()
    torch.manual_seed(5)
    case.trunk = Skipping().to(DTYPE)
    return case


def skip_losses(case: Case, z: Any, hidden: Tensor) -> list[Tensor]:
    return case.losses([view + hidden for view in ([z] * 3 if isinstance(z, Tensor) else z)])


@pytest.mark.parametrize(
    "method",
    [m for m in OF_KERNEL if m not in ("ntkmtl-tk", *OF_ENTRIES, *OF_MINIBATCHES, *GUIDED)],
)
@pytest.mark.parametrize("source", ["representation", "exact"])
def test_a_path_around_the_features(method: str, source: str) -> None:
    case, fresh = skipping(), skipping()
    hidden, z = case.features()
    balancer = make_balancer(method, source=source, minibatches=1, weight_heads=True)
    if source == "representation":
        with pytest.raises(ValueError, match=r"task 0 reaches a parameter of the trunk around"):
            balancer.backward(skip_losses(case, z, hidden), features=z)
        assert all(p.grad is None for p in case.parameters)
        return
    out = balancer.backward(skip_losses(case, z, hidden), features=z)
    hidden, z = fresh.features()
    losses = skip_losses(fresh, z, hidden)
    assert_grads(case.parameters, weighted_gradients(losses, fresh.parameters, out.weights))
    if source == "exact":
        slopes = slopes_of(method, losses)
        rows = torch.stack([oracle.flat_gradient(loss, fresh.shared) for loss in losses])
        rows = rows * slopes[:, None]
        kernel = ExtendedNTK((rows @ rows.T).view(3, 1, 3, 1))
        weighting = create(method, seed=0) if method in SEEDED else create(method)
        rough = {"cagrad": 1e-4}.get(method, 1e-9)
        expected = slopes * weighting(kernel)
        torch.testing.assert_close(out.weights, expected, rtol=rough, atol=rough)


@pytest.mark.parametrize("form", ["tensor", "branch"])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr"])
def test_a_path_around_the_features_with_unweighted_heads(method: str, form: str) -> None:
    # Either the trunk's gradient is that of the weighted sum, or an error says why it cannot be.
    case, fresh = skipping(), skipping()
    hidden, z = case.features()
    given = branch(z, 3) if form == "branch" else z
    balancer = Balancer(method, minibatches=1, weight_heads=False)
    try:
        out = balancer.backward(skip_losses(case, given, hidden), features=given)
    except ValueError:
        assert all(p.grad is None for p in case.parameters)
        return
    hidden, z = fresh.features()
    losses = skip_losses(fresh, z, hidden)
    assert_weighted_pair(case, fresh, losses, out.weights, weight_heads=False)


def test_options_that_a_path_around_the_features_excludes() -> None:
    case = skipping()
    hidden, z = case.features()
    with pytest.raises(ValueError, match=r"around the features.*source='auto'"):
        Balancer("ntkmtl-sr", hooked=False, minibatches=1).backward(
            skip_losses(case, z, hidden), features=z
        )
    with pytest.raises(ValueError, match="minibatches=1"):
        Balancer("ntkmtl", minibatches=2).backward(skip_losses(case, z, hidden), features=z)
    assert all(p.grad is None for p in case.parameters)


def test_the_cut_is_checked_again_when_the_heads_change() -> None:
    case = skipping()
    balancer = Balancer("ntkmtl-sr", minibatches=1)
    _, z = case.features()
    balancer.backward(case.losses(z), features=z)
    for p in case.parameters:
        p.grad = None
    hidden, z = case.features()
    with pytest.raises(ValueError, match="around the features"):
        balancer.backward(skip_losses(case, z, hidden), features=z)
    assert all(p.grad is None for p in case.parameters)


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "nash-mtl"])
def test_features_computed_from_another(method: str) -> None:
    case, fresh = skipping(), skipping()
    hidden, z = case.features()
    balancer = Balancer(method, minibatches=1, weight_heads=True)
    out = balancer.backward(skip_losses(case, z, hidden), features=(hidden, z))
    hidden, z = fresh.features()
    losses = skip_losses(fresh, z, hidden)
    assert_grads(case.parameters, weighted_gradients(losses, fresh.parameters, out.weights))


@pytest.mark.parametrize("first", [False, True])
def test_features_computed_from_another_in_a_later_step(first: bool) -> None:
    # The same heads, but other tensors are passed.
    case, fresh = skipping(), skipping()
    balancer = Balancer("ntkmtl-sr", minibatches=1)
    side = nn.Linear(4, 5).to(DTYPE)
    if first:
        _, z = case.features()
        x = torch.tanh(side(*case.inputs))
        balancer.backward(case.losses(z + x), features=(x, z))
    for p in case.parameters:
        p.grad = None
    hidden, z = case.features()
    out = balancer.backward(skip_losses(case, z, hidden), features=(hidden, z))
    hidden, z = fresh.features()
    losses = skip_losses(fresh, z, hidden)
    assert_grads(case.parameters, weighted_gradients(losses, fresh.parameters, out.weights))


@pytest.mark.parametrize("method", ["ntkmtl-sr", "nash-mtl"])
@pytest.mark.parametrize("how", ["chunk", "layers"])
def test_tuple_of_features(method: str, how: str) -> None:
    def build() -> tuple[Case, tuple[Tensor, ...]]:
        case = make_case()
        torch.manual_seed(5)
        case.trunk = nn.Linear(4, 10).to(DTYPE)
        z = case.features()
        if how == "chunk":
            return case, z.chunk(2, dim=1)
        return case, (z[:, :5].tanh(), z[:, 5:].sin())

    case, scales = build()
    balancer = Balancer(method, hooked=False, minibatches=2, weight_heads=True)
    out = balancer.backward(case.losses(scales[0] * scales[1]), features=scales)
    fresh, scales = build()
    losses = fresh.losses(scales[0] * scales[1])
    assert_grads(case.parameters, weighted_gradients(losses, fresh.parameters, out.weights))


def test_tied_weights_of_trunk_and_head() -> None:
    def build() -> Case:
        case = make_case()
        case.heads[1].layers[2].weight = nn.Parameter(case.trunk[0].weight[:1, :3].detach().clone())
        case.trunk[0].bias = nn.Parameter(torch.zeros(6, dtype=DTYPE))
        case.heads[0].layers[0].bias = nn.Parameter(torch.zeros(6, dtype=DTYPE))
        case.heads[0].layers[0] = nn.Linear(5, 6).to(DTYPE)
        case.heads[0].layers[0].bias = case.trunk[0].bias
        case.heads[0].layers[2] = nn.Linear(6, 1).to(DTYPE)
        return case

    with pytest.raises(ValueError, match="around the features"):
        step(build(), Balancer("ntkmtl-sr", minibatches=1))
    for method in ("ntkmtl", "ntkmtl-auto"):
        case, fresh = build(), build()
        out = step(case, Balancer(method, minibatches=1, weight_heads=True))
        losses = fresh.losses(fresh.features())
        assert_grads(case.parameters, weighted_gradients(losses, fresh.parameters, out.weights))


# --------------------------------------------------------------------------- numbers and memory


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_models(method: str, dtype: torch.dtype) -> None:
    case, reference = make_case(), make_case()
    case.trunk.to(dtype)
    case.heads.to(dtype)
    case.inputs = tuple(x.to(dtype) for x in case.inputs)
    case.targets = case.targets.to(dtype)
    options: dict[str, Any] = {} if spec(method).requires == "losses" else {"minibatches": 2}
    out = step(case, make_balancer(method, **options))
    assert out.weights.dtype == torch.float32
    assert out.weights.isfinite().all()
    for p in case.parameters:
        assert p.grad is not None
        assert p.grad.dtype == dtype
        assert p.grad.isfinite().all()
    if method not in ("graddrop", "pcgrad", "mgda"):  # these jump
        expected = step(reference, make_balancer(method, **options))
        rough = 1e-3 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(
            out.weights.double(), expected.weights.double(), rtol=rough, atol=rough
        )


class Mixed(nn.Module):
    """Half precision with its norm in single precision, as is common."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5).bfloat16()
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x).float())


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "nash-mtl", "graddrop"])
def test_trunk_of_two_precisions(method: str) -> None:
    case = make_case()
    case.trunk = Mixed()
    case.heads.float()
    case.inputs = tuple(x.bfloat16() for x in case.inputs)
    case.targets = case.targets.float()
    step(case, make_balancer(method))
    for p in case.shared:
        assert p.grad is not None
        assert p.grad.dtype == p.dtype


@pytest.mark.parametrize("exponent", [-12, 12])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "nash-mtl", "mgda"])
def test_scale_of_all_losses_in_float32(method: str, exponent: int) -> None:
    weights = []
    for scale in (1.0, 10.0**exponent):
        case = make_case()
        case.trunk.float()
        case.heads.float()
        case.inputs = tuple(x.float() for x in case.inputs)
        case.targets = case.targets.float()
        z = case.features()
        balancer = Balancer(method, minibatches=2)
        out = balancer.backward([loss * scale for loss in case.losses(z)], features=z)
        weights.append(out.weights * (scale if method == "nash-mtl" else 1.0))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["trunk", "heads", "both"])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "nash-mtl", "graddrop"])
def test_gradient_checkpointing(method: str, where: str) -> None:
    case, plain = make_case(), make_case()
    expected = step(plain, make_balancer(method, minibatches=2))

    def run(module: nn.Module, x: Tensor, on: bool) -> Tensor:
        return checkpoint(module, x, use_reentrant=False) if on else module(x)

    z = run(case.trunk, *case.inputs, on=where != "heads")
    heads = case.heads
    case.heads = nn.ModuleList()  # losses by hand
    outputs = [run(head, z, on=where != "trunk") for head in heads]
    case.heads = nn.ModuleList([nn.Identity() for _ in heads])
    losses = case.losses(outputs)
    out = make_balancer(method, minibatches=2).backward(losses, features=z)
    torch.testing.assert_close(out.weights, expected.weights, **EXACT)
    assert_grads([*case.shared, *heads.parameters()], [p.grad for p in plain.parameters])


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "nash-mtl"])
def test_compiled_trunk_and_heads(method: str) -> None:
    case, plain = make_case(), make_case()
    expected = step(plain, Balancer(method, minibatches=2))
    case.trunk.compile(backend="aot_eager")
    for head in case.heads:
        head.compile(backend="aot_eager")
    out = step(case, Balancer(method, minibatches=2))
    torch.testing.assert_close(out.weights, expected.weights, **EXACT)
    assert_grads(case.parameters, [p.grad for p in plain.parameters])


@pytest.mark.parametrize("source", ["representation", "exact"])
def test_a_head_that_reads_the_features_in_two_places(source: str) -> None:
    torch.manual_seed(0)
    trunk = nn.Linear(3, 4).to(DTYPE)
    heads = [nn.Linear(4, 1).to(DTYPE) for _ in range(2)]
    x, y = torch.randn(6, 3, dtype=DTYPE), torch.randn(2, 6, 1, dtype=DTYPE)
    z = trunk(x)
    losses = [(h(z) * (1.0 + z[:, :1]) - t).square().mean() for h, t in zip(heads, y, strict=True)]
    parameters = [*trunk.parameters(), *heads[0].parameters(), *heads[1].parameters()]
    each = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    out = Balancer("ntkmtl-sr", source=source, minibatches=2).backward(losses, features=z)
    for p, first, second in zip(parameters, *each, strict=True):
        expected = sum(
            w * g for w, g in zip(out.weights, (first, second), strict=True) if g is not None
        )
        torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=0)


def test_scale_multiplies_gradients_and_leaves_weights() -> None:
    for method in ("ntkmtl-sr", "ntkmtl", "famo", "fairgrad", "graddrop", "uw"):
        found = {}
        for scale in (1.0, 0.25):
            torch.manual_seed(0)
            trunk = nn.Linear(3, 4).to(DTYPE)
            heads = [nn.Linear(4, 1).to(DTYPE) for _ in range(2)]
            x, y = torch.randn(6, 3, dtype=DTYPE), torch.randn(2, 6, 1, dtype=DTYPE)
            z = trunk(x)
            losses = [(h(z) - t).square().mean() for h, t in zip(heads, y, strict=True)]
            balancer = Balancer(method, minibatches=2 if method.startswith("ntk") else None)
            out = balancer.backward(losses, features=z, scale=scale)
            found[scale] = (
                out.weights,
                [p.grad for p in (*trunk.parameters(), *heads[1].parameters())],
            )
        torch.testing.assert_close(found[1.0][0], found[0.25][0], rtol=1e-9, atol=0)
        for whole, quarter in zip(found[1.0][1], found[0.25][1], strict=True):
            torch.testing.assert_close(0.25 * whole, quarter, rtol=1e-9, atol=1e-12)


def test_scale_must_be_positive() -> None:
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale must be positive and finite, found"):
            Balancer("ls").backward([torch.ones((), requires_grad=True)], scale=scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("options", [{}, {"hooked": True}, {"memory_budget": 0}])
@pytest.mark.parametrize("method", ["ntkmtl-sr", "ntkmtl", "ntkmtl-auto", "imtl-g", "ls"])
def test_terms_of_a_sum_get_gradients_of_their_own(
    method: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    # Autograd returns one tensor for both terms. As ``.grad`` of both it would count twice.
    torch.manual_seed(0)
    first, second, *heads = [nn.Parameter(torch.randn(4).to(dtype)) for _ in range(6)]
    x = torch.randn(7, 4).to(dtype)
    factor = 1e-40 if dtype is torch.float64 else 1.0  # extreme weights are checked first

    def losses() -> list[Tensor]:
        z = (x * (first + second)).tanh()
        return [
            (z * (heads[0] + heads[1])).square().mean() * factor,
            (z * (heads[2] + heads[3])).square().mean(),
        ]

    options = {**options, "minibatches": 1} if method == "ntkmtl-sr" else options
    balancer = Balancer(method, **options)
    balancer.backward(losses())
    parameters = [first, second, *heads]
    assert len({p.grad.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    once = [p.grad.clone() for p in parameters]
    balancer.backward(losses())
    for p, gradient in zip(parameters, once, strict=True):
        torch.testing.assert_close(p.grad, 2 * gradient)
