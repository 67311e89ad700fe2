"""Errors and warnings that name the cause."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from graph.zoo import data, error, linear, weights
from ntkmtl import Balancer, NonFiniteError
from ntkmtl.weighting import accepted_options, create, names

METHODS = [n for n in names() if n not in ("stl", "modo", "sdmgrad")]


def make(method: str, **options: Any) -> Balancer:
    if "seed" in accepted_options(method):
        options["seed"] = 0
    if create(method).requires != "losses" and method != "ntkmtl-x":
        options.setdefault("minibatches", 1)
    return Balancer(method, **options)


class Net:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.trunk, self.heads = (
            nn.Sequential(linear(4, 5), nn.Tanh()),
            [linear(5, 1), linear(5, 1)],
        )
        self.x, self.y = data(8, 4), data(2, 8, 1)
        self.z = self.trunk(self.x)

    def losses(self) -> list[Tensor]:
        pairs = zip(self.heads, self.y, strict=True)
        return [3.0**i * error(h(self.z), t) for i, (h, t) in enumerate(pairs)]


# ------------------------------------------------------------------ not a number


@pytest.mark.parametrize("method", METHODS)
def test_a_mean_over_no_labels(method: str) -> None:
    net = Net()
    losses = net.losses()
    losses[1] = (net.heads[1](net.z) - net.y[1])[torch.zeros(8, dtype=torch.bool)].square().mean()
    with pytest.raises(NonFiniteError, match=r"loss of task 1 is nan.*mean over no labels.*None"):
        make(method).backward(losses, features=net.z)
    assert all(p.grad is None for p in weights(net.trunk, *net.heads))


def test_labels_that_are_nan_under_a_mask() -> None:
    # Their gradient is NaN whatever the mask says, since zero times NaN is NaN.
    net = Net()
    target = net.y[1].clone()
    target[3] = math.nan
    values = (net.heads[1](net.z) - target).square()[:, 0]
    mask = ~target.isnan()[:, 0]
    with pytest.raises(
        ValueError, match=r"not finite where their mask leaves them out.*fill missing"
    ):
        Balancer("ntkmtl-auto").backward([net.losses()[0], (values, mask)])
    assert all(p.grad is None for p in weights(net.trunk, *net.heads))


def test_a_root_of_zero_names_the_gradient() -> None:
    net = Net()
    losses = [net.losses()[0], (net.z - net.z.detach()).norm(dim=1).sqrt().mean()]
    with pytest.raises(NonFiniteError, match="gradient of task 1"):
        make("ntkmtl-auto").backward(losses)
    assert all(p.grad is None for p in weights(net.trunk, *net.heads))


# ------------------------------------------------------------------ nothing that is trained


@pytest.mark.parametrize("how", ["frozen", "no_grad", "detached"])
def test_a_loss_that_requires_no_gradient(how: str) -> None:
    net = Net()
    if how == "frozen":
        for p in weights(net.trunk, *net.heads):
            p.requires_grad_(False)
        loss = error(net.heads[1](net.trunk(net.x)), net.y[1])
    elif how == "no_grad":
        with torch.no_grad():
            loss = net.losses()[1]
    else:
        loss = net.losses()[1].detach()
    with pytest.raises(
        ValueError, match=r"task 1 does not require a gradient.*detach.*no_grad.*frozen"
    ):
        make("ntkmtl-auto").backward([net.losses()[0], loss])


def test_features_of_a_frozen_trunk() -> None:
    net = Net()
    for p in net.trunk.parameters():
        p.requires_grad_(False)
    net.z = net.trunk(net.x)
    with pytest.raises(ValueError, match="frozen"):
        make("ntkmtl-sr").backward(net.losses(), features=net.z)


def test_all_named_parameters_are_frozen_later() -> None:
    net = Net()
    balancer = Balancer("ntkmtl", shared=net.trunk.parameters())
    for p in net.trunk.parameters():
        p.requires_grad_(False)
    net.z = net.trunk(net.x)
    with pytest.raises(ValueError, match="every shared parameter is frozen"):
        balancer.backward(net.losses())


def test_named_parameters_of_a_copy() -> None:
    import copy

    net = Net()
    balancer = Balancer("ntkmtl", shared=copy.deepcopy(net.trunk).parameters())
    with pytest.raises(ValueError, match=r"no loss depends on the shared parameters.*copied"):
        balancer.backward(net.losses())


# ------------------------------------------------------------------ checkpoints and compiled parts


@pytest.mark.parametrize("named", ["shared", "features", ""])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-auto", "mgda", "fairgrad", "ntkmtl-sr"])
def test_reentrant_checkpoints(method: str, named: str) -> None:
    net = Net()
    x = net.x.requires_grad_()
    net.z = checkpoint(net.trunk, x, use_reentrant=True)
    options = {"shared": net.trunk.parameters()} if named == "shared" else {}
    balancer = make(method, **options)
    features = net.z if named == "features" else None
    if method == "ntkmtl-sr":
        balancer.backward(net.losses(), features)
        assert all(p.grad is not None for p in net.trunk.parameters())
        return
    with pytest.raises((RuntimeError, ValueError), match="use_reentrant=False"):
        balancer.backward(net.losses(), features)
    assert all(p.grad is None for p in weights(net.trunk, *net.heads))


@pytest.mark.integration
@pytest.mark.parametrize("hooked", [None, True])
@pytest.mark.parametrize("method", ["ntkmtl", "fairgrad", "pcgrad", "nash-mtl", "ntkmtl-auto"])
def test_a_compiled_trunk_made_after_the_balancer(method: str, hooked: bool | None) -> None:
    if method == "pcgrad" and hooked:
        pytest.skip("changes gradients entry by entry")
    torch.compiler.reset()
    net = Net()
    balancer = make(method, hooked=hooked)
    net.z = torch.compile(net.trunk, backend="aot_eager")(net.x)
    out = balancer.backward(net.losses())
    assert bool(out.weights.isfinite().all())
    assert all(p.grad is not None for p in weights(net.trunk, *net.heads))


# ------------------------------------------------------------------ where the samples are


def test_sequences_first_need_batch_dim() -> None:
    torch.manual_seed(0)
    gru, heads = nn.GRU(3, 4).double(), [linear(4, 1), linear(4, 1)]
    z, _ = gru(data(8, 4, 3))  # (time, batch, hidden)
    losses = [error(h(z.mean(0)), data(4, 1)) for h in heads]
    with pytest.raises(ValueError, match=r"features of shape \(8, 4, 4\).*batch_dim=1"):
        Balancer("ntkmtl-sr", minibatches=2).backward(losses, features=z)
    z, _ = gru(data(8, 4, 3))
    losses = [error(h(z.mean(0)), data(4, 1)) for h in heads]
    leaf = z.detach().requires_grad_()
    means = [
        [error(h(leaf.mean(0))[w], t[w]) for w in (slice(0, 2), slice(2, 4))]
        for h, t in zip(heads, data(2, 4, 1), strict=True)
    ]
    assert len(means) == 2
    out = Balancer("ntkmtl-sr", minibatches=2, batch_dim=1).backward(losses, features=z)
    assert bool((out.eigenvalues > 0).all())


@pytest.mark.parametrize("shape", [(1, 6, 4), (6, 1, 4)])
def test_one_sample_along_the_dimension_that_is_taken(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    trunk, heads = linear(4, 4), [linear(4, 1), linear(4, 1)]
    z = trunk(data(*shape)).tanh()
    losses = [h(z).square().mean() for h in heads]
    dim = shape.index(1)
    with pytest.raises(ValueError, match=r"batch_dim|minibatches"):
        Balancer("ntkmtl-sr", minibatches=2, batch_dim=dim).backward(losses, features=z)


def test_vectors_tell_where_the_samples_are() -> None:
    torch.manual_seed(0)
    gru, heads = nn.GRU(3, 4).double(), [linear(4, 1), linear(4, 1)]
    z, _ = gru(data(8, 6, 3))
    vectors = [h(z.mean(0))[:, 0].square() for h in heads]
    leaf = z.detach().requires_grad_()
    expected = []
    for h in heads:
        parts = h(leaf.mean(0))[:, 0].square().chunk(2)
        grads = [torch.autograd.grad(p.mean(), leaf, retain_graph=True)[0] for p in parts]
        expected.append(max(float(g.square().sum()) for g in grads))
    out = Balancer("ntkmtl-sr", minibatches=2).backward(vectors)
    assert out.eigenvalues.tolist() == pytest.approx(expected, rel=1e-9)


def test_unknown_samples_are_warned_about_once() -> None:
    balancer = Balancer("ntkmtl-sr")
    with pytest.warns(UserWarning, match="losses of single samples.*batch_dim=0.*features=z"):
        balancer.backward(Net().losses())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer.backward(Net().losses())


# ------------------------------------------------------------------ methods that need more


NEEDS = {n: [what for what, _ in create(n).needs()] for n in METHODS if list(create(n).needs())}


def test_the_methods_that_need_more_than_backward() -> None:
    found = {
        what: {n for n, needs in NEEDS.items() if what in needs}
        for what in ("after_step", "optimizer", "end_epoch")
    }
    assert "famo" in found["after_step"]
    assert {"uw", "imtl-l"} <= found["optimizer"]
    assert "dwa" in found["end_epoch"]


@pytest.mark.parametrize("method", list(NEEDS))
def test_missing_calls_are_warned_about_once(method: str) -> None:
    net = Net()
    balancer = make(method)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(120):
            net.z = net.trunk(net.x)
            balancer.backward(net.losses(), features=net.z)
    said = [str(w.message) for w in caught if "has not learned anything" in str(w.message)]
    assert len(said) == len(NEEDS[method])
    for what in NEEDS[method]:
        call = {"optimizer": "balancer.parameters()"}.get(what, f"balancer.{what}")
        assert sum(call in text for text in said) == 1


@pytest.mark.parametrize("method", METHODS)
def test_no_warning_if_all_calls_are_made(method: str) -> None:
    net = Net()
    balancer = make(method)
    learned = list(balancer.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*was not told how the tasks perform.*")
        for number in range(110):
            net.z = net.trunk(net.x)
            losses = net.losses()
            balancer.backward(losses, features=net.z)
            balancer.after_step([loss.detach() for loss in losses])
            if number % 50 == 49:
                balancer.end_epoch()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in learned)


# ------------------------------------------------------------------ derivatives of inputs


def test_losses_after_the_step_may_hold_input_derivatives() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(linear(2, 8), nn.Tanh(), linear(8, 1))
    inside, edge = data(6, 2).requires_grad_(), data(4, 2)

    def losses() -> list[Tensor]:
        u = net(inside)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        return [(slope.sum(1) - 1).square().mean(), net(edge).square().mean()]

    balancer = Balancer("famo")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        out = balancer.backward(losses())
        optimizer.step()
        before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        balancer.after_step(losses)
        for p, g in zip(net.parameters(), before, strict=True):
            assert (p.grad is None) == (g is None)
            assert g is None or torch.equal(p.grad, g)
    fresh = balancer.backward(losses())
    assert not torch.equal(out.weights, fresh.weights)


@pytest.mark.parametrize("as_vectors", [True, False])
def test_losses_after_the_step_in_every_form(as_vectors: bool) -> None:
    found = []
    for kind in ("list", "dict", "function", "no gradient"):
        net = Net()
        balancer = Balancer("famo", tasks=["0", "1"])
        balancer.backward(net.losses())

        def after(net: Net = net) -> list[Any]:
            rows = [(h(net.z) - t).square()[:, 0] for h, t in zip(net.heads, net.y, strict=True)]
            mask = torch.ones(8, dtype=torch.bool)
            return [(r, mask) for r in rows] if as_vectors else [r.mean() for r in rows]

        if kind == "list":
            balancer.after_step(after())
        elif kind == "dict":
            balancer.after_step({str(i): loss for i, loss in enumerate(after())})
        elif kind == "function":
            balancer.after_step(after)
        else:
            with torch.no_grad():
                balancer.after_step(after())
        found.append(balancer.backward(Net().losses()).weights)
    assert all(torch.equal(found[0], w) for w in found)
