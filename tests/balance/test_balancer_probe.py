"""The probe as a source of the Balancer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, ExtendedNTK, NonFiniteError, branch
from ntkmtl.graph import Features, TaskGradients
from ntkmtl.kernel import RememberInputs, extended_ntk
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._probe import Probe
from ntkmtl.kernel._probe_correction import ProbeCorrection
from ntkmtl.weighting import create, names, spec

EXACT = {"rtol": 1e-9, "atol": 1e-12}
OF_KERNEL = [
    name
    for name in names()
    if spec(name).requires in ("eigenvalues", "gramian", "kernel")
    and not create(name).has_head_objective
]


class Net(nn.Module):
    def __init__(self, dropout: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5)]
        if dropout:
            layers.append(nn.Dropout(0.5))
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        self.double()
        self.x = torch.randn(8, 3).double()
        self.y = torch.randn(3, 8, 1).double()

    def losses(self, views: Any) -> list[Tensor]:
        return [
            (10.0**i * (head(z) - y)).square().mean()
            for i, (head, z, y) in enumerate(zip(self.heads, views, self.y, strict=True))
        ]

    def step(self, balancer: Balancer, form: str = "tensor") -> Any:
        self.zero_grad()
        z = self.trunk(self.x)
        features = branch(z, 3) if form == "branch" else z
        views = features if form == "branch" else [z] * 3
        return balancer.backward(self.losses(views), features=features)


def by_hand(net: Net, probes: int, calls: int) -> list[ExtendedNTK]:
    """Probes of some calls, from gradients by plain differentiation."""
    probe = Probe(net.trunk, probes)
    kernels = []
    for _ in range(calls):
        z = net.trunk(net.x)
        gradients = [torch.autograd.grad(x, z, retain_graph=True)[0] for x in net.losses([z] * 3)]
        features = Features.of(z, ["a", "b", "c"])
        kernels.append(probe.kernel(features, TaskGradients([gradients]), Partition.of(8, 2)))
    return kernels


@pytest.mark.parametrize("form", ["tensor", "branch", "hooked"])
@pytest.mark.parametrize("method", OF_KERNEL)
def test_gradients_are_those_of_the_weighted_sum(method: str, form: str) -> None:
    net, fresh = Net(), Net()
    options: dict[str, Any] = {"seed": 0} if method == "pcgrad" else {}
    if form == "hooked":
        options["hooked"] = True
    balancer = Balancer(
        method, source="probe", trunk=net.trunk, minibatches=2, weight_heads=True, **options
    )
    out = net.step(balancer, form)
    z = fresh.trunk(fresh.x)
    total = sum(w * x for w, x in zip(out.weights, fresh.losses([z] * 3), strict=True))
    parameters = [*fresh.trunk.parameters(), *fresh.heads.parameters()]
    expected = torch.autograd.grad(total, parameters)
    size = max(float(g.abs().max()) for g in expected)
    for p, g in zip([*net.trunk.parameters(), *net.heads.parameters()], expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12 * size)


def test_fresh_probes_are_the_kernel() -> None:
    net = Net()
    balancer = Balancer(
        "ntkmtl", source="probe", probe=Probe(net.trunk, 3, corrected=False), minibatches=2
    )
    found = [net.step(balancer).kernel for _ in range(3)]
    for kernel, expected in zip(found, by_hand(Net(), 3, 3), strict=True):
        torch.testing.assert_close(kernel.values, expected.values, **EXACT)


@pytest.mark.parametrize("grad", [False, True])
def test_inputs_that_require_a_gradient_are_not_parameters(grad: bool) -> None:
    net, other = Net(), Net()
    net.x.requires_grad_(grad)
    expected, found = (
        n.step(Balancer("ntkmtl-sr", source="probe", trunk=n.trunk, minibatches=2))
        for n in (other, net)
    )
    torch.testing.assert_close(found.weights, expected.weights, **EXACT)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **EXACT)


def test_probes_correct_the_kernel_of_the_features_now_and_then() -> None:
    net, fresh = Net(), Net()
    balancer = Balancer("ntkmtl-sr", source="probe", probe=Probe(net.trunk, every=2), minibatches=2)
    assert balancer.pooling == "blockwise"
    found = [net.step(balancer).kernel for _ in range(4)]
    probe, correction = Probe(fresh.trunk), ProbeCorrection(3)
    for number, kernel in enumerate(found):
        z = fresh.trunk(fresh.x)
        losses = fresh.losses([z] * 3)
        free = extended_ntk(losses, features=z, minibatches=2, pooling="blockwise")
        if number % 2 == 0:
            own = [torch.autograd.grad(x, z, retain_graph=True)[0] for x in losses]
            features = Features.of(z, ["a", "b", "c"])
            slopes = probe.slopes(features, TaskGradients([own]), Partition.of(8, 2))
            correction.update(slopes, free)
        torch.testing.assert_close(kernel.blocks, correction(free).blocks, **EXACT)


@pytest.mark.parametrize("dropout", [False, True])
def test_nothing_changes_but_the_weights(dropout: bool) -> None:
    nets = [Net(dropout), Net(dropout)]
    ones: list[Any] = []
    for net, probed in zip(nets, (True, False), strict=True):
        torch.manual_seed(7)
        options: dict[str, Any] = {"source": "probe", "trunk": net.trunk} if probed else {}
        for _ in range(2):
            # An exponent of 0 makes all weights 1, so that the trainings must be the same.
            out = net.step(Balancer("ntkmtl-sr", exponent=0.0, minibatches=2, **options))
        assert out.weights.tolist() == [1.0, 1.0, 1.0]
        buffers = [b.clone() for b in net.buffers()]
        ones.append(([p.grad for p in net.parameters()], buffers, torch.get_rng_state()))
    (grads, buffers, state), (plain, expected, after) = ones
    assert torch.equal(state, after)
    assert all(torch.equal(a, b) for a, b in zip(buffers, expected, strict=True))
    for a, b in zip(grads, plain, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_state_goes_on_where_it_was() -> None:
    net = Net()
    options: dict[str, Any] = {"source": "probe", "minibatches": 2}
    balancer = Balancer("ntkmtl-sr", trunk=Probe(net.trunk, every=2), **options)
    for _ in range(3):
        net.step(balancer)
    state = copy.deepcopy(balancer.state_dict())
    other = Net()
    other.load_state_dict(net.state_dict())
    resumed = Balancer("ntkmtl-sr", trunk=Probe(other.trunk, every=2), **options)
    resumed.load_state_dict(state)
    for _ in range(3):
        assert torch.equal(net.step(balancer).weights, other.step(resumed).weights)
    plain = Balancer("ntkmtl-sr", minibatches=2)
    with pytest.raises(ValueError, match="with a probe, this is without one"):
        plain.load_state_dict(state)


def test_a_gradient_that_is_not_finite_leaves_the_correction_alone() -> None:
    net = Net()
    probe = Probe(net.trunk, every=1)
    balancer = Balancer("ntkmtl-sr", source="probe", probe=probe, minibatches=2, tasks=3)

    def correction() -> dict[str, Tensor]:
        state = balancer.state_dict()
        return {key: value for key, value in state.items() if key.startswith("correction.")}

    net.step(balancer)
    before = correction()
    assert before
    net.zero_grad()
    z = net.trunk(net.x)
    losses = net.losses([z] * 3)
    losses[1] = losses[1] + (z.sum() * 0.0).sqrt()
    with pytest.raises(NonFiniteError, match="gradient of task 1"):
        balancer.backward(losses, features=z)
    assert all(torch.equal(before[key], value) for key, value in correction().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "probe"}, "give the module that makes the features"),
        ({"source": "exact", "trunk": nn.Linear(1, 1)}, "trunk belongs to source='probe'"),
        ({"probe": Probe(nn.Linear(1, 1))}, "trunk belongs to source='probe'"),
        (
            {"source": "probe", "trunk": nn.Linear(1, 1), "probe": Probe(nn.Linear(1, 1))},
            "give trunk and corrected to the Probe",
        ),
        (
            {"source": "probe", "trunk": nn.Linear(1, 1), "corrected": False, "pooling": "pooled"},
            "corrected=False leaves it out",
        ),
        ({"source": "auto", "budget": 1.0}, "budget must be above 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Balancer("ntkmtl-sr", **options)


def test_entry_by_entry_methods_have_no_probes() -> None:
    with pytest.raises(ValueError, match="entry by entry, which 'probe' does not give"):
        Balancer("graddrop", source="probe", trunk=nn.Linear(1, 1))


def test_a_trunk_that_is_a_method() -> None:
    class Model(Net):
        def represent(self, x: Tensor) -> Tensor:
            return self.trunk(x)

    net, plain = Model(), Net()
    trunk = RememberInputs(net, "represent")
    shared = list(net.trunk.parameters())
    balancer = Balancer("ntkmtl-sr", source="probe", trunk=trunk, shared=shared, minibatches=2)
    z = trunk(net.x)
    found = balancer.backward(net.losses([z] * 3), features=z)
    expected = plain.step(Balancer("ntkmtl-sr", source="probe", trunk=plain.trunk, minibatches=2))
    torch.testing.assert_close(found.weights, expected.weights, **EXACT)
