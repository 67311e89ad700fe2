"""What users do that a first glance at the signature does not suggest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, weighting


def network(k: int = 3, seed: int = 0) -> tuple[nn.Sequential, nn.ModuleList]:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()).double()
    heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(k)).double()
    return trunk, heads


def inputs(rows: int = 12, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator, dtype=torch.float64)


def losses_of(heads: nn.ModuleList, z: Tensor) -> list[Tensor]:
    return [
        10.0**i * (head(z).squeeze(1) - z.detach().sum(1) - i).square().mean()
        for i, head in enumerate(heads)
    ]


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for m in modules for p in m.parameters()]


def close(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["ls", "ntkmtl-sr"])
@pytest.mark.parametrize("lazy", [iter, lambda values: map(torch.Tensor.clone, values)])
def test_losses_may_come_from_a_generator(method: str, lazy: Callable[..., Any]) -> None:
    found = []
    for form in (list, lazy):
        trunk, heads = network()
        z = trunk(inputs())
        balancer = Balancer(method, **({"minibatches": 2} if method != "ls" else {}))
        assert balancer.backward(form(losses_of(heads, z)), features=z).weights.shape == (3,)
        found.append(gradients(trunk, heads))
    close(found[1], found[0])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("what", ["network", "balancer"])
@pytest.mark.parametrize("method", ["ntkmtl", "nash-mtl", "pcgrad"])
def test_shared_parameters_of_another_network_are_refused(
    method: str, what: str, given: bool
) -> None:
    trunk, heads = network()
    balancer = Balancer(method, shared=trunk.parameters())
    if what == "network":
        trunk = copy.deepcopy(trunk)
    else:
        balancer = copy.deepcopy(balancer)
    z = trunk(inputs())
    with pytest.raises(ValueError, match="no loss depends on the shared parameters"):
        balancer.backward(losses_of(heads, z), features=z if given else None)
    assert all(p.grad is None for p in [*trunk.parameters(), *heads.parameters()])


def test_a_path_around_the_features_may_appear_later() -> None:
    balancer = Balancer("ntkmtl-sr", minibatches=2)
    trunk, heads = network(2)
    extra = nn.Parameter(torch.full((6,), 0.3, dtype=torch.float64))
    for step in range(2):
        z = trunk(inputs()) + (extra if step else 0.0)
        first = (heads[0](z * (1 + extra)) - 1).square().mean()
        losses = [first, 5 * (heads[1](z) - 2).square().mean()]
        if step == 0:
            balancer.backward(losses, features=z)
            continue
        with pytest.raises(ValueError, match=r"task 0 reaches a parameter.*shape \(6,\)"):
            balancer.backward(losses, features=z)


def test_tasks_that_take_turns_are_all_looked_at_again() -> None:
    trunk, heads = network(2)
    balancer = Balancer("ntkmtl-sr", minibatches=2, ema=0.5, every=2, tasks=2)
    made: dict[int, list[bool]] = {0: [], 1: []}
    for step in range(12):
        z = trunk(inputs(seed=step))
        task = step % 2
        own: list[Tensor | None] = [None, None]
        own[task] = (1 + step) * losses_of(heads, z)[task]
        expected = balancer.reuses([task])
        found = balancer.backward(own, features=z).eigenvalues is None
        assert found == expected
        made[task].append(not found)
    # Each task has a step in every second one, so each of its steps is two after its last kernel.
    assert made == {0: [True] * 6, 1: [True] * 6}


def test_every_counts_from_the_last_kernel_of_a_task() -> None:
    trunk, heads = network(2)
    balancer = Balancer("ntkmtl-sr", minibatches=2, every=3, tasks=2)
    found = []
    for step in range(8):
        z = trunk(inputs(seed=step))
        own: list[Tensor | None] = [*losses_of(heads, z)]
        if step == 0:
            own[1] = None
        found.append(balancer.backward(own, features=z).eigenvalues is not None)
        if step == 4:
            state = balancer.state_dict()
            balancer = Balancer("ntkmtl-sr", minibatches=2, every=3, tasks=2)
            balancer.load_state_dict(state)
    # Task 1 was absent at first, so the kernel is made in step 1, and from then in every third.
    assert found == [True, True, False, False, True, False, False, True]


def plainly(
    weights: Tensor, form: Callable[[nn.ModuleList, Tensor], list[Tensor]], prepare: Any
) -> tuple[list[Tensor | None], Tensor | None]:
    trunk, heads = network()
    z = trunk(inputs())
    prepare(z)
    total = sum(w * loss for w, loss in zip(weights.tolist(), form(heads, z), strict=True))
    assert isinstance(total, Tensor)
    total.backward()
    return gradients(trunk, heads), z.grad if z.retains_grad else None


def sharing(heads: nn.ModuleList, z: Tensor) -> list[Tensor]:
    """Every head reads z through an operation that all share."""
    return losses_of(heads, z * 1.5)


@pytest.mark.parametrize("form", [losses_of, sharing])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "mgda"])
@pytest.mark.parametrize(
    "prepare", [lambda z: z.register_hook(lambda g: 0.1 * g), lambda z: z.retain_grad()]
)
def test_hooks_on_the_features_act_as_in_plain_training(
    form: Any, method: str, prepare: Any
) -> None:
    trunk, heads = network()
    z = trunk(inputs())
    prepare(z)
    options = {"minibatches": 2} if method == "ntkmtl-sr" else {}
    out = Balancer(method, weight_heads=True, **options).backward(form(heads, z), features=z)
    expected, retained = plainly(out.weights, form, prepare)
    close(gradients(trunk, heads), expected)
    if retained is not None:
        assert z.grad is not None
        torch.testing.assert_close(z.grad, retained, rtol=1e-9, atol=1e-12)


def test_the_published_clipping_is_not_of_gradients_that_accumulate() -> None:
    trunk, heads = network()
    balancer = Balancer("ntkmtl", preset="published")
    for _ in range(2):  # zeroed gradients are none
        z = trunk(inputs())
        balancer.backward(losses_of(heads, z), features=z)
        norm = torch.stack([p.grad.norm() for p in trunk.parameters() if p.grad is not None])
        assert float(norm.norm()) <= 1 + 1e-6
        trunk.zero_grad(set_to_none=False)
    z = trunk(inputs())
    balancer.backward(losses_of(heads, z), features=z, scale=0.5)
    before = gradients(trunk)
    z = trunk(inputs())
    with pytest.raises(ValueError, match=r"clips the gradient of one batch.*zero_grad"):
        balancer.backward(losses_of(heads, z), features=z, scale=0.5)
    close(gradients(trunk), before)


@pytest.mark.parametrize("once", [False, True])
def test_one_feature_made_from_another_counts_its_own_path_only(once: bool) -> None:
    """By hand: d loss / d f with c held, whether or not the heads share the operation on both."""
    torch.manual_seed(0)
    a, b = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
    heads = nn.ModuleList(nn.Linear(7, 1) for _ in range(3)).double()
    f = a(inputs()).tanh()
    c = (3 * b(f)).tanh()
    joined = torch.cat([f, c], 1) if once else None
    losses = [
        (head(torch.cat([f, c], 1) if joined is None else joined) - i).square().mean()
        for i, head in enumerate(heads)
    ]
    found = Balancer("ntkmtl-sr", minibatches=1).backward(losses, features=(f, c)).eigenvalues
    held = torch.cat([f, c], 1).detach().requires_grad_()
    expected = [
        torch.autograd.grad((head(held) - i).square().mean(), held)[0].square().sum()
        for i, head in enumerate(heads)
    ]
    assert found is not None
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("form", ["list", "none in a dict", "left out of the dict"])
def test_a_task_without_a_batch_needs_no_features(form: str) -> None:
    found = []
    for absent in (False, True):
        trunk, heads = network()
        z = {name: trunk(inputs(rows)) for name, rows in (("a", 8), ("b", 12))}
        own: dict[str, Tensor | None] = {
            name: (head(z[name]) - 1).square().mean()
            for name, head in zip("ab", heads, strict=False)
        }
        features: Any = dict(z)
        if absent:
            own["c"] = None
            if form == "list":
                features = [z["a"], z["b"], None]
            elif form == "none in a dict":
                features = {**z, "c": None}
        names = ["a", "b", "c"] if absent else ["a", "b"]
        balancer = Balancer("ntkmtl-sr", minibatches=4, tasks=names)
        losses: Any = list(own.values()) if form == "list" else own
        if not absent and form == "list":
            features = [z["a"], z["b"]]
        out = balancer.backward(losses, features=features)
        found.append((out.weights[:2], gradients(trunk, heads)))
        if absent:
            assert float(out.weights[2]) == 0.0
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0.0)
    close(found[1][1], found[0][1])


def test_a_task_with_a_batch_needs_its_features() -> None:
    trunk, heads = network()
    z = trunk(inputs())
    losses = dict(zip("abc", losses_of(heads, z), strict=True))
    with pytest.raises(ValueError, match="features are given for"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses, features={"a": z, "b": z})


def test_inputs_that_require_a_gradient_are_no_parameters() -> None:
    found = []
    for asked in (False, True):
        trunk, heads = network()
        x = inputs().requires_grad_(asked)
        z = trunk(x)
        out = Balancer("ntkmtl").backward(losses_of(heads, z), features=z)
        assert out.eigenvalues is not None
        found.append((out.eigenvalues, gradients(trunk, heads)))
        if asked:
            trunk, heads = network()
            twin = inputs().requires_grad_()
            rows = losses_of(heads, trunk(twin))
            total = sum(w * loss for w, loss in zip(out.weights.tolist(), rows, strict=True))
            assert isinstance(total, Tensor)
            assert x.grad is not None
            torch.testing.assert_close(x.grad, torch.autograd.grad(total, twin)[0])
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=0.0)
    close(found[1][1], found[0][1])


@pytest.mark.parametrize("given", [True, False])
def test_shared_parameters_may_be_frozen_later(given: bool) -> None:
    trunk, heads = network()
    balancer = Balancer("ntkmtl", shared=trunk.parameters())
    trunk[0].requires_grad_(False)
    z = trunk(inputs())
    found = balancer.backward(losses_of(heads, z), features=z if given else None).eigenvalues
    other, twins = network()
    other[0].requires_grad_(False)
    z = other(inputs())
    expected = Balancer("ntkmtl", shared=other[2].parameters()).backward(
        losses_of(twins, z), features=z if given else None
    )
    assert found is not None
    assert expected.eigenvalues is not None
    torch.testing.assert_close(found, expected.eigenvalues, rtol=1e-12, atol=0.0)
    trunk.requires_grad_(False)
    z = trunk(inputs()).requires_grad_()
    with pytest.raises(ValueError, match="every shared parameter is frozen"):
        balancer.backward(losses_of(heads, z), features=z if given else None)


@pytest.mark.parametrize("method", [n for n in weighting.names() if n != "stl"])
def test_another_default_device_changes_nothing(method: str) -> None:
    """A default GPU would do as "meta" does here: nothing of it may be mixed with the CPU's."""
    found = []
    for place in ("cpu", "meta"):
        trunk, heads = network()
        torch.manual_seed(3)
        x = inputs()
        with torch.device(place):
            balancer = Balancer(method)
            for _ in range(2):
                for p in (*trunk.parameters(), *heads.parameters()):
                    p.grad = None
                z = trunk(x)
                own = losses_of(heads, z)
                weights = balancer.backward(own, features=z).weights
                balancer.after_step([loss.detach() for loss in own])
            balancer.end_epoch()
            balancer.load_state_dict(balancer.state_dict())
        found.append((weights, gradients(trunk, heads)))
        assert all(p.device.type == "cpu" for p in balancer.parameters())
    assert torch.equal(found[0][0], found[1][0])
    close(found[1][1], found[0][1])


def test_the_trunk_is_probed_under_its_own_default_device() -> None:
    class Makes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            made.append(torch.zeros(1).device.type)
            return super().forward(x)

    made: list[str] = []
    trunk, head = Makes(5, 4), nn.Linear(4, 1)
    x = torch.randn(8, 5)
    with torch.device("meta"):
        balancer = Balancer("ntkmtl", source="probe", minibatches=2, trunk=trunk)
        z = trunk(x)
        balancer.backward([head(z).square().mean(), head(z).mean()], features=z)
    assert len(made) > 1
    assert set(made) == {"meta"}


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-auto", "nash-mtl", "mgda"])
@pytest.mark.parametrize("where", ["trunk", "head"])
def test_sparse_gradients_stay_sparse(method: str, where: str) -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(10, 4, sparse=sparse).double()
        trunk, own = nn.Linear(4, 4).double(), nn.Linear(4, 1).double()
        heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2)).double()
        rows = table(torch.arange(6) // 2)
        z = trunk(rows if where == "trunk" else torch.ones(6, 4).double()).tanh()
        losses = [(head(z) - i).square().mean() for i, head in enumerate(heads)]
        if where == "head":
            losses[1] = losses[1] + (own(z * rows) - 3).square().mean()
        out = Balancer(method, minibatches=1, weight_heads=True).backward(losses)
        grad = table.weight.grad
        assert grad is not None
        assert grad.is_sparse == sparse
        found.append((out.weights, grad.to_dense(), trunk.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_famo_does_not_learn_from_a_step_that_the_scaler_skipped() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    balancer = Balancer("famo")
    for bad in (False, True):
        optimizer.zero_grad()
        if bad:
            # A loss that is finite, with a gradient that is not.
            with torch.no_grad():
                weight[0] = 1.0
            losses = [(weight[0] - 1.0).abs().sqrt() + weight[1], weight[1].square()]
        else:
            losses = [weight[0].square(), 3 * weight[1].square()]
        balancer.backward(losses, scaler=scaler)
        before = weight.detach().clone()
        state = {k: v.clone() for k, v in balancer.weighting.state_dict().items() if v is not None}
        scaler.step(optimizer)
        scaler.update()
        balancer.after_step([2 * loss.detach() for loss in losses])
        after = balancer.weighting.state_dict()
        same = all(torch.equal(after[k], v) for k, v in state.items())
        assert same == bad
        assert torch.equal(weight, before) == bad


def test_a_refused_state_changes_nothing() -> None:
    trunk, heads = network()
    z = trunk(inputs())
    averaged = Balancer("ntkmtl", ema=0.5, source="representation")
    averaged.backward(losses_of(heads, z), features=z)
    other = Balancer("ntkmtl", ema=0.5)
    with pytest.raises(ValueError, match="averages the kernel of representation, blockwise"):
        other.load_state_dict(averaged.state_dict())
    probing = Balancer("ntkmtl-sr", source="probe", trunk=trunk, tasks=3)
    state = Balancer("ntkmtl-sr", tasks=3).state_dict()
    before = probing.state_dict()
    with pytest.raises(ValueError, match="without a probe"):
        probing.load_state_dict(state)
    after = probing.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("method", [name for name in weighting.names() if name != "stl"])
def test_a_head_that_starts_at_zero_learns(method: str) -> None:
    trunk, heads = network()
    for parameter in heads[1].parameters():
        nn.init.zeros_(parameter)
    z = trunk(inputs())
    Balancer(method).backward(losses_of(heads, z), features=z)
    assert float(heads[1].weight.grad.norm()) > 0


@pytest.mark.parametrize("method", [name for name in weighting.names() if name != "stl"])
def test_a_state_from_before_the_first_step_starts_again(method: str) -> None:
    trunk, heads = network()
    balancer = Balancer(method)
    fresh = balancer.state_dict()
    found = []
    for _ in range(2):
        for module in (trunk, heads):
            module.zero_grad()
        parameters = list(balancer.parameters())
        optimiser = torch.optim.SGD(parameters, lr=0.1) if parameters else None
        for step in range(3):
            losses: list[Tensor | None] = []
            z = trunk(inputs(seed=step))
            losses.extend(losses_of(heads, z))
            if step == 0:
                losses[0] = None  # fewer labels than tasks in the first step
            found.append(balancer.backward(losses, features=z).weights)
            if balancer.weighting.needs_after_step:
                balancer.after_step([None if v is None else v.detach() * 0.9 for v in losses])
            if optimiser is not None:
                optimiser.step()
                optimiser.zero_grad()
        balancer.load_state_dict(fresh)
    for one, other in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0.0, equal_nan=True)
