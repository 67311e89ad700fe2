"""Architectures: equal to loops over samples and to each other, and balanced as an oracle does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.bench.problems.architectures import (
    CGC,
    PLE,
    Architecture,
    Backbone,
    CrossStitch,
    DSelectK,
    DSelectKGate,
    HardSharing,
    MMoE,
    choose,
    names,
    pooled,
    smooth_step,
)

K, B, INPUTS, WIDTHS = 3, 6, 5, (7, 4, 4)
REL = 1e-9


def stages(widths: Sequence[int] = WIDTHS) -> list[nn.Module]:
    sizes = (INPUTS, *widths)
    return [
        nn.Sequential(nn.Linear(before, after), nn.Tanh())
        for before, after in zip(sizes, widths, strict=False)
    ]


def _same(x: Any) -> Any:
    return x


def backbone(widths: Sequence[int] = WIDTHS) -> Backbone:
    return Backbone(partial(stages, widths), tuple(widths), _same, INPUTS)


def heads(count: int = K) -> list[Callable[[], nn.Module]]:
    return [partial(nn.Linear, WIDTHS[-1], 1)] * count


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


NETWORKS: dict[str, Callable[[int], Architecture]] = {
    "hard": lambda k: HardSharing(backbone(), heads(k)),
    "cross-stitch": lambda k: CrossStitch(backbone(), heads(k)),
    "cross-stitch channels": lambda k: CrossStitch(backbone(), heads(k), per_channel=True),
    "mmoe": lambda k: MMoE(backbone(), heads(k), experts=3),
    "cgc": lambda k: CGC(backbone(), heads(k), shared_experts=2, task_experts=2),
    "cgc without own": lambda k: CGC(backbone(), heads(k), shared_experts=2, task_experts=0),
    "ple of 3": lambda k: PLE(backbone(), heads(k), shared_experts=2, task_experts=1),
    "ple of 2": lambda k: PLE(backbone(WIDTHS[1:]), heads(k), task_experts=2),
    "ple without own": lambda k: PLE(backbone(), heads(k), shared_experts=2, task_experts=0),
    "dselect-k": lambda k: DSelectK(backbone(), heads(k), experts=4),
    "dselect-k static": lambda k: DSelectK(backbone(), heads(k), experts=4, static=True),
}
OWN = [name for name in NETWORKS if name != "hard"]


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Architecture:
    made = NETWORKS[request.param](K)
    # Away from the start, where units and selectors are alike.
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def losses(network: Architecture, x: Tensor) -> tuple[list[Tensor], Any]:
    z = network.represent(x)
    return [(i + 1) * (y - i).square().mean() for i, y in enumerate(network.predict(z))], z


# ------------------------------------------------------------------------------------------------
# Formulas, sample by sample and expert by expert


def softmax(scores: Sequence[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def gate_by_hand(gate: Any, x: Tensor) -> list[float]:
    weight = gate.linear.weight
    rows = weight.tolist()
    return softmax([sum(w * v for w, v in zip(row, x.tolist(), strict=True)) for row in rows])


def weighted(weights: Sequence[float], outputs: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(outputs[0])
    for weight, output in zip(weights, outputs, strict=True):
        total = total + weight * output
    return total


def cross_stitch_by_hand(network: CrossStitch, x: Tensor) -> list[Tensor]:
    encoders: Any = network.encoders
    xs = [x] * K
    for stage, alpha in enumerate(network.units):
        said = [encoders[i][stage](xs[i][None])[0] for i in range(K)]
        xs = [
            torch.stack(
                [
                    sum(
                        (alpha[i, j] if alpha.ndim == 2 else alpha[i, j, c]) * said[j][c]
                        for j in range(K)
                    )
                    for c in range(len(said[0]))
                ]
            )
            for i in range(K)
        ]
    return xs


def mmoe_by_hand(network: MMoE, x: Tensor) -> list[Tensor]:
    said = [expert(x[None])[0] for expert in network.experts]
    return [weighted(gate_by_hand(gate, x), said) for gate in network.gates]


def step_by_hand(t: float, gamma: float) -> float:
    if t <= -gamma / 2:
        return 0.0
    if t >= gamma / 2:
        return 1.0
    return -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5


def dselect_weights_by_hand(gate: Any, x: Tensor) -> list[float]:
    z = gate.z(x[None])[0].tolist()
    alpha = softmax(gate.alpha(x[None])[0].tolist())
    digits = len(z) // len(alpha)
    weights = [0.0] * 2**digits
    for s, share in enumerate(alpha):
        for i in range(2**digits):
            product = 1.0
            for j in range(digits):
                step = step_by_hand(z[s * digits + j], gate.gamma)
                product *= step if (i // 2**j) % 2 else 1 - step
            weights[i] += share * product
    return weights


def dselect_by_hand(network: DSelectK, x: Tensor) -> list[Tensor]:
    said = [expert(x[None])[0] for expert in network.experts]
    return [weighted(dselect_weights_by_hand(gate, x), said) for gate in network.gates]


def ple_by_hand(network: PLE, x: Tensor) -> list[Tensor]:
    xs, shared_x = [x] * K, x
    for level in network.levels:
        parts: Any = level
        shared = [expert(shared_x[None])[0] for expert in parts.shared]
        own = [[e(xs[k][None])[0] for e in parts.own[k]] for k in range(K)]
        new = [weighted(gate_by_hand(parts.gates[k], xs[k]), own[k] + shared) for k in range(K)]
        if parts.shared_gate is not None:
            everything = [e for mine in own for e in mine] + shared
            shared_x = weighted(gate_by_hand(parts.shared_gate, shared_x), everything)
        xs = new
    return xs


def by_hand(network: Architecture, x: Tensor) -> list[Tensor]:
    if isinstance(network, HardSharing):
        return [network.trunk(x[None])[0]] * K
    if isinstance(network, CrossStitch):
        return cross_stitch_by_hand(network, x)
    if isinstance(network, DSelectK):
        return dselect_by_hand(network, x)
    if isinstance(network, MMoE):
        return mmoe_by_hand(network, x)
    assert isinstance(network, PLE)
    return ple_by_hand(network, x)


def test_representations_equal_those_by_hand(network: Architecture) -> None:
    x = torch.randn(B, INPUTS)
    found = network.represent(x)
    if isinstance(found, Tensor):
        assert not network.private_below
        found = [found] * K
    outputs = network.predict(network.represent(x))
    for sample in range(B):
        expected = by_hand(network, x[sample])
        for task in range(K):
            torch.testing.assert_close(found[task][sample], expected[task], rtol=REL, atol=1e-12)
            head: Any = network.heads[task]
            row = head.weight[0] @ expected[task] + head.bias[0]
            torch.testing.assert_close(outputs[task][sample, 0], row, rtol=REL, atol=1e-12)


# ------------------------------------------------------------------------------------------------
# Parameters, counted by hand

ENCODER = (5 * 7 + 7) + (7 * 4 + 4) + (4 * 4 + 4)
HEADS = 3 * (4 + 1)


@pytest.mark.parametrize(
    ("name", "total", "shared"),
    [
        ("hard", ENCODER + HEADS, ENCODER),
        ("cross-stitch", 3 * ENCODER + 3 * 9 + HEADS, 3 * ENCODER + 3 * 9),
        (
            "cross-stitch channels",
            3 * ENCODER + 9 * (7 + 4 + 4) + HEADS,
            3 * ENCODER + 9 * (7 + 4 + 4),
        ),
        ("mmoe", 3 * ENCODER + 3 * (5 * 3) + HEADS, 3 * ENCODER),
        ("cgc", (2 + 6) * ENCODER + 3 * (5 * 4) + HEADS, 2 * ENCODER),
        # 5 encoders in stages; tasks' gates over 1 + 2 experts, shared gates over 3 + 2, read
        # 5, 7 and 4 numbers. Not shared: the tasks' last stages, and their last two gates.
        (
            "ple of 3",
            5 * ENCODER + 3 * 3 * (5 + 7 + 4) + 5 * (5 + 7) + HEADS,
            5 * ENCODER - 3 * 20 + 3 * 3 * 5 + 5 * (5 + 7),
        ),
        # z: 2 selectors of 2 digits, alpha: 2, each linear in 5 numbers and a constant.
        ("dselect-k", 4 * ENCODER + 3 * (6 * 5 + 6) + HEADS, 4 * ENCODER),
        ("dselect-k static", 4 * ENCODER + 3 * 6 + HEADS, 4 * ENCODER),
    ],
)
def test_counts_of_parameters(name: str, total: int, shared: int) -> None:
    network = NETWORKS[name](K)
    assert sum(p.numel() for p in network.parameters()) == total
    assert sum(p.numel() for p in network.shared_parameters()) == shared


def test_shared_is_what_the_losses_of_several_tasks_reach(network: Architecture) -> None:
    parameters = list(network.parameters())
    found, _ = losses(network, torch.randn(B, INPUTS))
    reached = [0] * len(parameters)
    for loss in found:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for place, gradient in enumerate(gradients):
            reached[place] += gradient is not None and bool(gradient.abs().sum() > 0)
    assert min(reached) >= 1
    expected = {id(p) for p, times in zip(parameters, reached, strict=True) if times > 1}
    shared = list(network.shared_parameters())
    assert {id(p) for p in shared} == expected
    assert len(shared) == len(expected)


# ------------------------------------------------------------------------------------------------
# Special cases


def test_mmoe_of_one_expert_is_hard_sharing() -> None:
    network = MMoE(backbone(), heads(), experts=1)
    hard = HardSharing(backbone(), heads())
    hard.trunk.load_state_dict(network.experts[0].state_dict())
    x = torch.randn(B, INPUTS)
    for z in network.represent(x):
        torch.testing.assert_close(z, hard.represent(x), rtol=REL, atol=0)


@pytest.mark.parametrize("per_channel", [False, True])
def test_identity_units_are_single_task_networks(per_channel: bool) -> None:
    network = CrossStitch(backbone(), heads(), same=1.0, per_channel=per_channel)
    x = torch.randn(B, INPUTS)
    encoders: Any = network.encoders
    for task, z in enumerate(network.represent(x)):
        single = CrossStitch(backbone(), heads(1))
        assert len(single.units) == 0
        alone: Any = single.encoders
        alone[0].load_state_dict(encoders[task].state_dict())
        torch.testing.assert_close(z, single.represent(x)[0], rtol=REL, atol=0)


def test_units_start_as_the_paper_says() -> None:
    (unit, *_) = CrossStitch(backbone(), heads(2)).units
    torch.testing.assert_close(unit.data, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    for unit in CrossStitch(backbone(), heads(4)).units:
        torch.testing.assert_close(unit.sum(1), torch.ones(4))


def test_cgc_without_own_experts_is_mmoe() -> None:
    network = CGC(backbone(), heads(), shared_experts=3, task_experts=0)
    other = MMoE(backbone(), heads(), experts=3)
    (level,) = network.levels
    parts: Any = level
    for task in range(K):
        other.gates[task].load_state_dict(parts.gates[task].state_dict())
    for expert in range(3):
        # A level's expert holds the whole encoder as its one stage.
        other.experts[expert].load_state_dict(parts.shared[expert].state_dict())
    x = torch.randn(B, INPUTS)
    for mine, theirs in zip(network.represent(x), other.represent(x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=REL, atol=0)


def test_ple_of_one_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 stages"):
        PLE(backbone((4,)), heads())


@pytest.mark.parametrize("name", OWN)
def test_one_task_is_a_network_with_one_representation(name: str) -> None:
    network = NETWORKS[name](1)
    z = network.represent(torch.randn(B, INPUTS))
    assert [tuple(t.shape) for t in z] == [(B, WIDTHS[-1])]
    (y,) = network.predict(z)
    y.square().mean().backward()
    unreached = [n for n, p in network.named_parameters() if p.grad is None]
    assert not unreached
    assert list(network.shared_parameters())


# ------------------------------------------------------------------------------------------------
# DSelect-k


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_smooth_step(gamma: float) -> None:
    t = torch.linspace(-2 * gamma, 2 * gamma, 81, requires_grad=True)
    found = smooth_step(t, gamma)
    expected = torch.tensor([step_by_hand(v, gamma) for v in t.tolist()])
    torch.testing.assert_close(found, expected, rtol=REL, atol=1e-15)
    torch.testing.assert_close(found + smooth_step(-t, gamma), torch.ones_like(t))
    assert ((found >= -1e-15) & (found <= 1 + 1e-15)).all()
    (slope,) = torch.autograd.grad(found.sum(), t)
    inside = t.detach().abs() < gamma / 2
    derivative = -6 * t.detach() ** 2 / gamma**3 + 3 / (2 * gamma)
    torch.testing.assert_close(slope, torch.where(inside, derivative, 0.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_selected_weights_sum_to_one(scale: float, static: bool) -> None:
    gate = DSelectKGate(INPUTS, experts=8, nonzeros=3, static=static)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    x = torch.randn(50, INPUTS)
    torch.testing.assert_close(gate.selectors(x).sum(2), torch.ones(50, 3), rtol=REL, atol=0)
    weights = gate(x)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(50), rtol=REL, atol=0)


def test_binary_selectors_select_at_most_k_experts() -> None:
    gate = DSelectKGate(INPUTS, experts=8, nonzeros=3)
    with torch.no_grad():
        gate.z.weight.copy_(1e6 * torch.randn_like(gate.z.weight))
        gate.alpha.weight.copy_(torch.randn_like(gate.alpha.weight))
    x = torch.randn(200, INPUTS)
    selected = (gate(x) > 0).sum(1)
    assert int(selected.max()) == 3
    assert int(selected.min()) >= 1
    # Digits 1, 0, 1 from the first on are the number 5.
    with torch.no_grad():
        gate.z.weight.zero_()
        gate.z.bias.copy_(torch.tensor([1.0, -1.0, 1.0]).repeat(3))
    torch.testing.assert_close(gate(x), torch.eye(8)[5].expand(200, 8), rtol=REL, atol=0)


def test_selectors_begin_where_the_slope_is() -> None:
    network = DSelectK(backbone(), heads())
    assert len(network.experts) == 8
    gate: Any = network.gates[0]
    assert float(gate.z.weight.detach().abs().max()) <= 0.01
    weights = gate(torch.randn(9, INPUTS)).detach()
    assert float((weights - 1 / 8).abs().max()) < 0.1


# ------------------------------------------------------------------------------------------------
# Balanced


def oracle(network: Architecture, x: Tensor, weights: Sequence[float]) -> list[Tensor]:
    found, _ = losses(network, x)
    total = sum(w * loss for w, loss in zip(weights, found, strict=True))
    return list(torch.autograd.grad(total, list(network.parameters())))


def assert_gradients(network: Architecture, expected: Sequence[Tensor]) -> None:
    for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=REL, atol=1e-13, msg=name)


def flat(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a loss as one row, 0 where it does not reach."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
    ]
    return torch.cat([part.flatten() for part in parts])


def top(block: Tensor) -> float:
    return float(torch.linalg.eigvalsh(block)[-1])


def ntkmtl_weights(eigenvalues: Sequence[float]) -> list[float]:
    mean = sum(eigenvalues) / len(eigenvalues)
    return [math.sqrt(mean / value) for value in eigenvalues]


@pytest.mark.parametrize("hooked", [False, True])
def test_sr_equals_its_oracle(network: Architecture, hooked: bool) -> None:
    x, n = torch.randn(B, INPUTS), 2
    found, z = losses(network, x)
    eigenvalues = []
    for task, loss in enumerate(found):
        own = z if isinstance(z, Tensor) else z[task]
        (gradient,) = torch.autograd.grad(loss, own, retain_graph=True)
        # Row u: the gradient of mini-batch u's mean loss, a sum of rows scaled by B / |u|.
        rows = torch.stack([part.sum(0) * n for part in gradient.chunk(n)])
        eigenvalues.append(top(rows @ rows.T / n))
    balancer = Balancer("ntkmtl-sr", pooling="pooled", minibatches=n, hooked=hooked)
    result = balancer.backward(found, features=z)
    expected = ntkmtl_weights(eigenvalues)
    assert result.weights.tolist() == pytest.approx(expected, rel=REL)
    assert_gradients(network, oracle(network, x, expected))


@pytest.mark.parametrize("n", [1, 2])
def test_exact_reads_the_shared_parameters_alone(network: Architecture, n: int) -> None:
    x = torch.randn(B, INPUTS)
    shared = list(network.shared_parameters())
    eigenvalues = []
    for task in range(K):
        rows = []
        for part in x.chunk(n):
            loss = losses(network, part)[0][task]
            rows.append(flat(loss, shared))
        matrix = torch.stack(rows)
        eigenvalues.append(top(matrix @ matrix.T / n))
    found, z = losses(network, x)
    balancer = Balancer("ntkmtl", minibatches=n, shared=shared)
    result = balancer.backward(found, features=z)
    expected = ntkmtl_weights(eigenvalues)
    assert result.weights.tolist() == pytest.approx(expected, rel=REL)
    # Tasks' own gates and experts are weighted with their representation.
    private = {id(p) for p in network.heads.parameters()}
    for parameter, gradient in zip(network.parameters(), oracle(network, x, expected), strict=True):
        if id(parameter) not in private:
            torch.testing.assert_close(parameter.grad, gradient, rtol=REL, atol=1e-13)


@pytest.mark.parametrize("name", OWN)
def test_gramian_methods_take_the_exact_source(name: str) -> None:
    network = NETWORKS[name](K)
    x = torch.randn(B, INPUTS)
    found, z = losses(network, x)
    with pytest.raises(ValueError, match="source='exact'"):
        Balancer("imtl-g", source="representation").backward(found, features=z)
    found, z = losses(network, x)
    shared = list(network.shared_parameters())
    result = Balancer("imtl-g", source="exact", shared=shared).backward(found, features=z)
    jacobian = torch.stack([flat(loss, shared) for loss in losses(network, x)[0]])
    gramian = jacobian @ jacobian.T
    norms = gramian.diagonal().sqrt()
    expected = torch.linalg.solve(gramian, norms)
    expected = expected / expected.sum()
    torch.testing.assert_close(
        result.weights.double() / result.weights.sum(), expected, rtol=1e-6, atol=1e-9
    )


# ------------------------------------------------------------------------------------------------
# Feature maps, choices, errors


def test_feature_maps_are_mixed_and_pooled_for_gates() -> None:
    def stages() -> list[nn.Module]:
        return [nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)]

    def head() -> nn.Module:
        return nn.Conv2d(4, 1, 1)

    x = torch.randn(2, 2, 4, 6)
    maps = Backbone(stages, (3, 4), gate=_same, gate_width=2)
    network = PLE(maps, [head] * 2)
    assert [tuple(z.shape) for z in network.represent(x)] == [(2, 4, 4, 6)] * 2
    stitched = CrossStitch(maps, [head] * 2, per_channel=True)
    assert [tuple(z.shape) for z in stitched.represent(x)] == [(2, 4, 4, 6)] * 2
    mixture = MMoE(maps, [head] * 2, experts=2)
    weights = mixture.gate_weights(x)[1]
    gate: Any = mixture.gates[1]
    assert weights[0].tolist() == pytest.approx(gate_by_hand(gate, x[0].mean(dim=(1, 2))), rel=REL)
    said = [expert(x) for expert in mixture.experts]
    expected = weights[1, 0] * said[0][1] + weights[1, 1] * said[1][1]
    torch.testing.assert_close(mixture.represent(x)[1][1], expected, rtol=REL, atol=1e-13)
    with pytest.raises(ValueError, match="dimension 1"):
        pooled(torch.zeros(3))


@pytest.mark.parametrize("name", names())
def test_choices_build_what_they_name(name: str) -> None:
    choice = choose(name)
    network = choice.build(backbone(), heads())
    assert [tuple(y.shape) for y in network.predict(network.represent(torch.zeros(2, INPUTS)))] == [
        (2, 1)
    ] * K
    assert name in choice.describe()
    assert choice.options.get("architecture", {"name": "hard"})["name"] == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choose("soft"), "architecture must be one of hard, cross-stitch"),
        (lambda: choose("hard", {"experts": 2}), "hard has no setting 'experts'; it takes: none"),
        (lambda: choose("mmoe", {"experts": "2"}), "must be of type int"),
        (lambda: choose("mmoe", {"experts": True}), "must be of type int"),
        (lambda: choose("mmoe", "experts=2"), "must be a mapping"),  # type: ignore[arg-type]
        (lambda: MMoE(backbone(), heads(), experts=0), "at least 1. Found experts=0"),
        (lambda: CGC(backbone(), heads(), shared_experts=0), "Found shared_experts=0"),
        (lambda: PLE(backbone(), heads(), task_experts=-1), "Found task_experts=-1"),
        (lambda: CrossStitch(backbone(), heads(), same=1.5), "Found same=1.5"),
        (lambda: DSelectK(backbone(), heads(), experts=6), "power of two. Found experts=6"),
        (lambda: DSelectK(backbone(), heads(), experts=2, nonzeros=3), "Found nonzeros=3"),
        (lambda: DSelectK(backbone(), heads(), gamma=0.0), "Found gamma=0.0"),
        (lambda: MMoE(backbone(), []), "at least one head"),
        (
            lambda: HardSharing(Backbone(stages, (7,), _same, INPUTS), heads()),
            "Found 3 and 1",
        ),
        (lambda: MMoE(backbone(), heads()).predict(torch.zeros(2, 4)), "Found one tensor"),
        (lambda: MMoE(backbone(), heads()).predict([torch.zeros(2, 4)]), "1 rep.* for 3 heads"),
    ],
)
def test_errors_say_what_was_found(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_float_may_be_written_as_a_whole_number() -> None:
    assert choose("cross-stitch", {"same": 1}).settings["same"] == 1.0
