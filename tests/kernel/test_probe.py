"""Slopes along directions, and kernels computed from them, against Jacobians built row by row."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernel import oracle
from kernel.oracle import BATCH, EXACT, make_case
from ntkmtl.graph import Branches, Features, TaskGradients, branch
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._probe import Probe, kernel_from_slopes, probe_kernel, probe_slopes
from ntkmtl.kernel._trunk import RememberInputs, TrunkCall


def gradients_of(losses: list[Tensor], features: Features) -> TaskGradients:
    """Gradients of the losses, one call of autograd for each."""
    per_task = features.per_task
    rows: list[list[Tensor]] = []
    for f, tensor in enumerate(features.tensors):
        if per_task and f > 0:
            break
        rows.append([])
        for i, loss in enumerate(losses):
            target = features.tensors[i] if per_task else tensor
            (g,) = torch.autograd.grad(loss, target, retain_graph=True, allow_unused=True)
            rows[-1].append(torch.zeros_like(target) if g is None else g)
    return TaskGradients(rows)


def basis(module: nn.Module, parameters: list[Tensor] | None = None) -> Iterator[dict[str, Tensor]]:
    """Every unit vector of parameter space, one after the other."""
    named = dict(module.named_parameters())
    if parameters is not None:
        named = {n: p for n, p in named.items() if any(p is q for q in parameters)}
    for name, p in named.items():
        for entry in range(p.numel()):
            directions = {n: torch.zeros_like(q) for n, q in named.items()}
            directions[name].view(-1)[entry] = 1.0
            yield directions


def sum_over_basis(slopes: Tensor) -> Tensor:
    """The sum over directions of a a^T, which over a whole basis is the kernel itself."""
    return torch.einsum("piu,pjv->iujv", slopes, slopes)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("trunk", oracle.TRUNKS)
def test_sum_over_the_standard_basis_is_the_exact_kernel(trunk: str, n: int) -> None:
    case = make_case(trunk, tasks=2)
    call = TrunkCall(case.trunk, case.inputs)
    z = case.features()
    per_sample = case.per_sample(z)
    features = Features.of(z, ["a", "b"], case.batch_dim)
    slopes = probe_slopes(
        call,
        features,
        gradients_of([row.mean() for row in per_sample], features),
        Partition.of(BATCH, n),
        directions=basis(case.trunk),
        mode="forward",
    )
    expected = oracle.exact(per_sample, case.shared, oracle.sizes(BATCH, n))
    torch.testing.assert_close(sum_over_basis(slopes), expected, **EXACT)


@pytest.mark.parametrize("trunk", oracle.TRUNKS)
def test_slopes_by_differences_are_directional_derivatives(trunk: str) -> None:
    case = make_case(trunk)
    call = TrunkCall(case.trunk, case.inputs)
    z = case.features()
    per_sample = case.per_sample(z)
    features = Features.of(z, list("abc"), case.batch_dim)
    partition = Partition.of(BATCH, 2)
    generator = torch.Generator().manual_seed(3)
    slopes = probe_slopes(
        call,
        features,
        gradients_of([row.mean() for row in per_sample], features),
        partition,
        generator=generator,
    )
    generator.manual_seed(3)
    v = {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in case.trunk.named_parameters()
    }
    means = oracle.minibatch_means(per_sample, oracle.sizes(BATCH, 2))
    flat = torch.cat([x.reshape(-1) for x in v.values()])
    expected = torch.tensor(
        [[float(oracle.flat_gradient(m, case.shared) @ flat) for m in row] for row in means]
    ).double()
    error = (slopes[0] - expected).norm() / expected.norm()
    assert error < 1e-4


def test_float32_differences_agree_with_forward_mode() -> None:
    case = make_case("convolutional")
    case.trunk.float()
    call = TrunkCall(case.trunk, tuple(x.float() for x in case.inputs))
    z = case.trunk(*call.args)
    features = Features.of(z, list("abc"))
    gradients = gradients_of([row.mean() for row in case.per_sample(z.double())], features)
    found = [
        probe_slopes(
            call,
            features,
            gradients,
            Partition.of(BATCH, 2),
            probes=4,
            generator=torch.Generator().manual_seed(0),
            mode=mode,
        )
        for mode in ("difference", "forward")
    ]
    assert (found[0] - found[1]).norm() / found[1].norm() < 0.01


def test_kernel_is_unbiased() -> None:
    case = make_case("mlp")
    call = TrunkCall(case.trunk, case.inputs)
    z = case.features()
    per_sample = case.per_sample(z)
    features = Features.of(z, list("abc"))
    m = 4000
    kernel = probe_kernel(
        call,
        features,
        gradients_of([row.mean() for row in per_sample], features),
        Partition.of(BATCH, 2),
        probes=m,
        generator=torch.Generator().manual_seed(0),
    )
    expected = oracle.exact(per_sample, case.shared, oracle.sizes(BATCH, 2)).reshape(6, 6)
    found = kernel.values.reshape(6, 6)
    # Isserlis: Var (a_p a_q) = K_pp K_qq + K_pq^2 for Gaussian directions.
    variance = expected.diagonal()[:, None] * expected.diagonal() + expected.square()
    z_scores = (found - expected) / (variance / m).sqrt()
    assert z_scores.abs().max() < 4.0
    assert z_scores.square().mean().sqrt() > 0.1  # the test is not blind to the scale


def test_relative_variance_of_one_eigenvalue_is_two_over_m() -> None:
    case = make_case("mlp", tasks=1)
    call = TrunkCall(case.trunk, case.inputs)
    z = case.features()
    per_sample = case.per_sample(z)
    features = Features.of(z, ["a"])
    slopes = probe_slopes(
        call,
        features,
        gradients_of([row.mean() for row in per_sample], features),
        Partition.of(BATCH, 1),
        probes=4000,
        generator=torch.Generator().manual_seed(1),
    )
    exact = float(oracle.exact(per_sample, case.shared, [BATCH]))
    for m in (1, 4):
        groups = slopes[:, 0, 0].view(-1, m)
        estimates = torch.stack([kernel_from_slopes(g[:, None, None]).gramian() for g in groups])
        ratio = estimates.flatten() / exact
        # Standard error of a mean: sqrt(2 / 4000) = 0.022; of the variance at m = 1, with
        # kurtosis 15 of a chi-square: 2 sqrt(14 / 4000) = 0.12.
        assert abs(float(ratio.mean()) - 1.0) < 0.09
        assert abs(float(ratio.var()) * m - 2.0) < 0.5


class Odd(nn.Module):
    """Dropout, batch norm, a tied, a frozen and an unused parameter, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6)
        self.third.weight = self.second.weight
        self.frozen = nn.Linear(6, 5)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        self.seen += 1
        h = self.drop(torch.tanh(self.norm(self.first(x)) + shift))
        h = torch.tanh(self.third(torch.tanh(self.second(h))))
        z: Tensor = self.frozen(self.drop(h))
        return z


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Odd()

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        z: Tensor = checkpoint(self.inner, x, shift=shift, use_reentrant=False)
        return z


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("mode", ["difference", "forward"])
@pytest.mark.parametrize("kind", [Odd, Checkpointed])
def test_nothing_changes_and_the_backward_pass_is_the_same(
    kind: type[nn.Module], mode: str
) -> None:
    torch.manual_seed(0)
    trunk = kind().double().train()
    heads = nn.ModuleList([nn.Linear(5, 1) for _ in range(2)]).double()
    x, y = torch.randn(8, 4).double(), torch.randn(2, 8, 1).double()
    shift = torch.randn(6).double()

    def train(probed: bool) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor]:
        own, readout = copy.deepcopy(trunk), copy.deepcopy(heads)
        probe = Probe(own, probes=2, mode=mode) if probed else None
        torch.manual_seed(7)
        for _ in range(2):
            z = own(x, shift=shift)
            losses = [(h(z) - t).square().mean() for h, t in zip(readout, y, strict=True)]
            if probe is not None:
                features = Features.of(z, ["a", "b"])
                gradients = gradients_of(losses, features)
                before, state = snapshot(own), torch.get_rng_state()
                grads = [None if p.grad is None else p.grad.clone() for p in own.parameters()]
                slopes = probe.slopes(features, gradients, Partition.of(8, 2))
                assert slopes.abs().min() > 0
                assert torch.equal(torch.get_rng_state(), state)
                after = snapshot(own)
                assert all(torch.equal(before[name], after[name]) for name in before)
                for p, g in zip(own.parameters(), grads, strict=True):
                    assert p.grad is None if g is None else torch.equal(p.grad, g)
            sum(losses).backward()
        return snapshot(own), [p.grad for p in own.parameters()], torch.get_rng_state()

    plain, probed = train(False), train(True)
    assert all(torch.equal(plain[0][name], probed[0][name]) for name in plain[0])
    for a, b in zip(plain[1], probed[1], strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert torch.equal(plain[2], probed[2])


@pytest.mark.parametrize("kind", [Odd, Checkpointed])
def test_dropout_masks_are_those_of_the_forward_pass(kind: type[nn.Module]) -> None:
    trunk = kind().double().train()
    x, shift = torch.randn(5, 4).double(), torch.randn(6).double()
    call = TrunkCall(trunk, (x,), {"shift": shift})
    z = trunk(x, shift=shift)
    torch.rand(10)  # the heads draw too
    features = Features.of(z, ["a"])
    loss = z.pow(3).sum(1)
    (gradient,) = torch.autograd.grad(loss.mean(), z, retain_graph=True)
    shared = [p for p in trunk.parameters() if p.requires_grad]
    slopes = probe_slopes(
        call,
        features,
        TaskGradients([[gradient]]),
        Partition.of(5, 1),
        directions=basis(trunk, shared),
        mode="forward",
    )
    expected = oracle.exact(loss[None], shared, [5])
    torch.testing.assert_close(sum_over_basis(slopes), expected, **EXACT)


def test_directions_over_some_parameters_only() -> None:
    case = make_case("mlp")
    some = list(case.trunk[2].parameters())
    call = TrunkCall(case.trunk, case.inputs)
    z = case.features()
    per_sample = case.per_sample(z)
    features = Features.of(z, list("abc"))
    slopes = probe_slopes(
        call,
        features,
        gradients_of([row.mean() for row in per_sample], features),
        Partition.of(BATCH, 1),
        directions=basis(case.trunk, some),
        parameters=some,
        mode="forward",
    )
    expected = oracle.exact(per_sample, some, [BATCH])
    torch.testing.assert_close(sum_over_basis(slopes), expected, **EXACT)


class Several(nn.Module):
    """Returns one representation per task in a dict, among other things."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 5)
        self.own = nn.ModuleList([nn.Linear(5, 2), nn.Linear(5, 3)])

    def forward(self, x: Tensor) -> dict[str, object]:
        h = torch.tanh(self.stem(x))
        return {"hidden": h, "own": [layer(h) for layer in self.own]}


@pytest.mark.parametrize("form", ["tuple", "per task"])
def test_several_features_are_found_among_what_the_trunk_returns(form: str) -> None:
    trunk = Several().double()
    x, y = torch.randn(6, 4).double(), torch.randn(2, 6).double()
    remember = RememberInputs(trunk)
    out = trunk(x)
    first, second = out["own"]
    if form == "tuple":
        both = torch.cat([first, second], dim=1)
        rows = torch.stack([(both.sum(1) - y[0]) ** 2, (both[:, 1] * both[:, 3] - y[1]) ** 2])
        features = Features.of((first, second), ["a", "b"])
    else:
        rows = torch.stack([(first.sum(1) - y[0]) ** 2, (second.prod(1) - y[1]) ** 2])
        features = Features.of([first, second], ["a", "b"])
    slopes = probe_slopes(
        remember.call(features),
        features,
        gradients_of([row.mean() for row in rows], features),
        Partition.of(6, 2),
        directions=basis(trunk),
        mode="forward",
    )
    expected = oracle.exact(rows, trunk.parameters(), [3, 3])
    torch.testing.assert_close(sum_over_basis(slopes), expected, **EXACT)


def test_branches_and_counts() -> None:
    case = make_case("mlp", tasks=2)
    remember = RememberInputs(case.trunk)
    z = case.features()
    views: Branches = branch(z, 2)
    counts = torch.tensor([[1.0, 0, 2, 1, 1, 0, 3], [0, 0, 0, 1, 1, 1, 1]]).double()
    sums = torch.stack(case.rows(views)) * (counts > 0)
    losses = [row.sum() / c.sum() for row, c in zip(sums, counts, strict=True)]
    features = Features.of(views, ["a", "b"])
    slopes = probe_slopes(
        remember.call(features),
        features,
        gradients_of(losses, features),
        Partition.of(BATCH, 2, counts),
        directions=basis(case.trunk),
        mode="forward",
    )
    expected = oracle.exact(sums, case.shared, oracle.sizes(BATCH, 2), counts)
    torch.testing.assert_close(sum_over_basis(slopes), expected, **EXACT)


def test_a_method_as_trunk() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def represent(self, x: Tensor) -> Tensor:
            z: Tensor = torch.tanh(self.layer(x))
            return z

    model = Model()
    trunk = RememberInputs(model, "represent")
    x = torch.randn(4, 3)
    z = trunk(x)
    (again,) = trunk.call(Features.of(z, ["a"])).run({})
    assert torch.equal(again, z)
    with pytest.raises(TypeError, match="no method 'encode'"):
        RememberInputs(model, "encode")


def test_mixed_precision_takes_small_steps_in_full_precision() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))
    x = torch.randn(8, 4)
    remember = RememberInputs(trunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = trunk(x)
    features = Features.of(z, ["a"])
    gradients = TaskGradients([[torch.randn(8, 8)]])
    found = [
        probe_slopes(
            remember.call(features),
            features,
            gradients,
            Partition.of(8, 4),
            probes=3,
            generator=torch.Generator().manual_seed(0),
            mode=mode,
        )
        for mode in ("difference", "forward")
    ]
    assert not torch.is_autocast_enabled("cpu")
    assert (found[0] - found[1]).norm() / found[1].norm() < 0.02


@pytest.mark.integration
def test_compiled_trunk() -> None:
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    compiled = torch.compile(trunk, backend="eager")
    probe = Probe(compiled)
    z = compiled(torch.randn(6, 3))
    slopes = probe.slopes(
        Features.of(z, ["a"]), TaskGradients([[torch.randn(6, 4)]]), Partition.of(6, 1)
    )
    assert slopes.shape == (1, 1, 1)


def setup(trunk: nn.Module, x: Tensor, **settings: object) -> tuple[Probe, Features, TaskGradients]:
    probe = Probe(trunk, **settings)
    z = trunk(x)
    return probe, Features.of(z, ["a"]), TaskGradients([[torch.randn_like(z)]])


def test_state_continues_the_directions() -> None:
    trunk, x = nn.Linear(3, 2), torch.randn(4, 3)
    probe, features, gradients = setup(trunk, x, seed=5)
    partition = Partition.of(4, 2)
    first = probe.slopes(features, gradients, partition)
    state = probe.state_dict()
    second = probe.slopes(features, gradients, partition)
    assert not torch.equal(first, second)
    other = Probe(probe.trunk, seed=5)
    other.load_state_dict(state)
    assert other.mode == "difference"
    assert torch.equal(other.slopes(features, gradients, partition), second)
    with pytest.raises(ValueError, match="lacks calls"):
        other.load_state_dict({"settled": state["settled"], "forward": state["forward"]})


class Jumps(nn.Module):
    """Changes by a whole unit wherever a rounded number changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 64)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        return h + (1e7 * h.detach()).round() % 2


def test_discontinuous_features_are_differentiated_in_forward_mode() -> None:
    x = torch.randn(6, 3)
    probe, features, gradients = setup(Jumps(), x)
    probe.slopes(features, gradients, Partition.of(6, 1))
    assert probe.mode == "forward"
    probe, features, gradients = setup(Jumps(), x, mode="difference")
    with pytest.raises(ValueError, match="jump or bend"):
        probe.slopes(features, gradients, Partition.of(6, 1))


class Random(nn.Module):
    """Draws from a source that nobody replays."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.own = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        return h + torch.rand(h.shape, generator=self.own)


def test_a_trunk_that_cannot_be_repeated_raises() -> None:
    probe, features, gradients = setup(Random(), torch.randn(6, 3))
    with pytest.raises(ValueError, match="does not return the same features"):
        probe.slopes(features, gradients, Partition.of(6, 1))


def test_bad_input_raises() -> None:
    trunk, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3)
    partition = Partition.of(4, 1)
    probe, features, gradients = setup(trunk, x)
    call = probe.trunk.call(features)
    with pytest.raises(ValueError, match="give a generator"):
        probe_slopes(call, features, gradients, partition)
    with pytest.raises(ValueError, match="not the trunk's"):
        probe_slopes(call, features, gradients, partition, parameters=[nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="mode must be one of"):
        Probe(trunk, mode="backward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probes must be at least 1"):
        Probe(trunk, probes=0)
    other = trunk(x) * 1.0
    with pytest.raises(ValueError, match="not what the trunk returned"):
        probe.trunk.call(Features.of(other, ["a"]))
    outer = nn.Linear(3, 3)
    z = trunk(outer(x))
    with pytest.raises(ValueError, match="2 parameters that are not the trunk's"):
        probe.slopes(Features.of(z, ["a"]), gradients, partition)
    z = trunk(x)
    x.add_(1.0)
    features = Features.of(z, ["a"])
    with pytest.raises(ValueError, match="changed in place"):
        probe.slopes(features, gradients, partition)
    probe.trunk.release()
    with pytest.raises(ValueError, match="has not run with gradients"):
        probe.trunk.call(features)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        RememberInputs(lambda x: x)  # type: ignore[arg-type]
    for p in trunk.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to probe"):
        probe_slopes(call, features, gradients, partition)


def test_half_precision_parameters_use_forward_mode() -> None:
    probe, features, gradients = setup(nn.Linear(3, 2).bfloat16(), torch.randn(4, 3).bfloat16())
    slopes = probe.slopes(features, gradients, Partition.of(4, 2))
    assert probe.mode == "forward"
    assert bool(slopes.isfinite().all())
    with pytest.raises(ValueError, match="half precision"):
        probe_slopes(
            probe.trunk.call(features),
            features,
            gradients,
            Partition.of(4, 2),
            generator=torch.Generator(),
            mode="difference",
        )


def test_evaluation_in_between_is_not_remembered() -> None:
    trunk = nn.Linear(3, 2)
    remember = RememberInputs(trunk)
    z = trunk(torch.ones(4, 3))
    with torch.no_grad():
        trunk(torch.zeros(2, 3))
    (again,) = remember.call(Features.of(z, ["a"])).run({})
    assert torch.equal(again, z)
    copied = copy.deepcopy(remember)
    with pytest.raises(ValueError, match="has not run"):
        copied.call(Features.of(z, ["a"]))
