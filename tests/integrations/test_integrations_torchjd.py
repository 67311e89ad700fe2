"""Both directions of ``ntkmtl.integrations.torchjd`` against computations without it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import (
    AlignedMTL,
    AlignedMTLWeighting,
    ConstantWeighting,
    CRMOGMWeighting,
    ExcessMTLWeighting,
    GradVacWeighting,
    GramianWeightedAggregator,
    IMTLGWeighting,
    Mean,
    MGDAWeighting,
    MoDoWeighting,
    SDMGradWeighting,
    SumWeighting,
)
from torchjd.aggregation import Weighting as TorchJDWeighting
from torchjd.autogram import Engine
from torchjd.autojac import jac_to_grad, mtl_backward
from torchjd.linalg import PSDMatrix

from ntkmtl import Balancer, ExtendedNTK, NonFiniteError
from ntkmtl.integrations.torchjd import as_torchjd, from_torchjd
from ntkmtl.weighting import Weighting, create, names, spec

# Deterministic, and without a solver that is an extra.
KERNEL_METHODS = ["mgda", "imtl-g", "nash-mtl", "aligned-mtl", "fairgrad", "ntkmtl"]
k, B = 3, 12


class Setting:
    def __init__(self) -> None:
        torch.manual_seed(1)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh()).double()
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(k)).double()
        self.x = torch.randn(B, 4, dtype=torch.float64)
        scales = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[:, None, None]
        self.y = scales * torch.randn(k, B, 1, dtype=torch.float64)

    def samples(self) -> tuple[Tensor, Tensor]:
        """The features, and the squared errors of shape (k, B)."""
        z = self.trunk(self.x)
        errors = [
            (head(z) - y).square().squeeze(1) for head, y in zip(self.heads, self.y, strict=True)
        ]
        return z, torch.stack(errors)

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        """The features, and k losses whose graphs meet at the features only."""
        z = self.trunk(self.x)
        pairs = zip(self.heads, self.y, strict=True)
        return z, [(head(z) - y).square().mean() for head, y in pairs]

    def gramian(self) -> Tensor:
        """Row by row."""
        rows = []
        for i in range(k):
            loss = self.losses()[1][i]
            rows.append(
                torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, self.parameters)])
            )
        J = torch.stack(rows)
        return J @ J.T

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())

    def grads(self) -> dict[str, Tensor]:
        both = nn.ModuleList([self.trunk, self.heads])
        found = {n: p.grad.clone() for n, p in both.named_parameters() if p.grad is not None}
        both.zero_grad()
        return found


@pytest.fixture
def setting() -> Setting:
    return Setting()


def assert_same_grads(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- ours in TorchJD


@pytest.mark.parametrize("method", KERNEL_METHODS)
def test_autogram_with_our_weighting_is_the_balancer(method: str, setting: Setting) -> None:
    engine = Engine(setting.trunk, batch_dim=None)
    losses = setting.samples()[1].mean(dim=1)
    weights = as_torchjd(method)(engine.compute_gramian(losses))
    losses.backward(weights)
    theirs = setting.grads()

    fresh = Setting()
    z, samples = fresh.samples()
    out = Balancer(method, source="exact", minibatches=1, weight_heads=True).backward(
        list(samples.mean(dim=1)), features=z
    )
    torch.testing.assert_close(weights, out.weights, rtol=1e-9, atol=1e-12)
    assert_same_grads(theirs, fresh.grads())


@pytest.mark.parametrize("method", ["ntkmtl", "mgda"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_autogram_of_minibatch_losses_is_the_extended_ntk(
    method: str, n: int, setting: Setting
) -> None:
    engine = Engine(setting.trunk, batch_dim=None)
    losses = setting.samples()[1].reshape(k, n, B // n).mean(dim=2)  # (k, n)
    weighting = as_torchjd(method, minibatches=n)
    weights = weighting(engine.compute_gramian(losses.reshape(-1))).reshape(k, n)
    losses.backward(weights)
    theirs = setting.grads()

    fresh = Setting()
    z, samples = fresh.samples()
    out = Balancer(method, source="exact", minibatches=n, weight_heads=True).backward(
        list(samples.mean(dim=1)), features=z
    )
    torch.testing.assert_close(weights.sum(dim=1), out.weights, rtol=1e-9, atol=1e-12)
    assert_same_grads(theirs, fresh.grads())


def test_an_aggregator_with_our_weighting_is_the_balancer(setting: Setting) -> None:
    z, losses = setting.losses()
    mtl_backward(
        losses,
        features=z,
        tasks_params=[head.parameters() for head in setting.heads],
        shared_params=setting.parameters,
    )
    jac_to_grad(setting.parameters, GramianWeightedAggregator(as_torchjd("ntkmtl")))
    theirs = setting.grads()

    fresh = Setting()
    z, losses = fresh.losses()
    Balancer("ntkmtl", minibatches=1, weight_heads=False).backward(losses, features=z)
    assert_same_grads(theirs, fresh.grads())


def test_options_reach_the_method_and_the_dtype_is_the_gramians() -> None:
    G = torch.diag(torch.tensor([9.0, 1.0]))
    weights = as_torchjd("ntkmtl", exponent=1.0)(G)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([5 / 9, 5.0]))
    torch.testing.assert_close(as_torchjd(create("ntkmtl", exponent=1.0))(G), weights)


def test_state_goes_through_torchs_state_dict() -> None:
    G = torch.diag(torch.tensor([9.0, 1.0]))
    first, second = as_torchjd("pcgrad"), as_torchjd("pcgrad")
    first(G)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(G), second(G))
    assert copy.deepcopy(first)(G).shape == (2,)


@pytest.mark.parametrize("method", ["ls", "uw", "famo", "graddrop"])
def test_a_method_that_reads_no_gramian_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} reads the .* use ntkmtl.Balancer"):
        as_torchjd(method)


@pytest.mark.parametrize("method", names())
def test_a_method_that_is_taken_reads_the_kernel_alone(method: str) -> None:
    n = 2 if spec(method).requires == "kernel" else 1
    try:
        weighting = as_torchjd(method, minibatches=n)
    except ValueError as error:
        assert "use ntkmtl.Balancer" in str(error)  # noqa: PT017
        return
    with_losses = copy.deepcopy(weighting.weighting)
    assert isinstance(with_losses, Weighting)
    with_losses.prepare(k, torch.device("cpu"))
    for step in range(3):
        J = torch.randn(k * n, 20, dtype=torch.float64)
        losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) ** step
        expected = with_losses(ExtendedNTK((J @ J.T).reshape(k, n, k, n)), losses=losses)
        found = weighting(J @ J.T)
        torch.testing.assert_close(found.reshape(k, n).sum(dim=1), expected)
        assert bool(found.isfinite().all())


def test_a_method_that_also_trains_the_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="consmtl needs more than a Gramian per step"):
        as_torchjd("consmtl")


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("ntkmtl-log", "ntkmtl-log works on logarithms of the losses"),
        ("ntkmtl-sr", "ntkmtl-sr is NTKMTL with the kernel of the representation"),
        ("ntkmtl-tk", "take 'ntkmtl' for that kernel"),
    ],
)
def test_a_method_whose_kernel_is_another_is_refused(method: str, match: str) -> None:
    for one in (method, create(method)):
        with pytest.raises(ValueError, match=match):
            as_torchjd(one)


@pytest.mark.parametrize("inner", ["gradnorm", "imtl"])
def test_a_method_that_learns_from_losses_is_refused(inner: str) -> None:
    for weighting in (create(inner), create("cr-mogm", inner=inner)):
        with pytest.raises(ValueError, match="needs more than a Gramian"):
            as_torchjd(weighting)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: as_torchjd("ntkmtl-rs"), ValueError, "did you mean"),
        (lambda: as_torchjd("ntkmtl", exponant=1), TypeError, "no option 'exponant'"),
        (lambda: as_torchjd(create("ntkmtl"), exponent=1), TypeError, "unknown options"),
        (lambda: as_torchjd(AlignedMTLWeighting()), TypeError, "a weighting of ntkmtl"),  # type: ignore[arg-type]
        (lambda: as_torchjd("modo")(torch.eye(3)), ValueError, "mini-batches"),
        (lambda: as_torchjd("ntkmtl", minibatches=0), ValueError, "at least 1, found 0"),
        (lambda: as_torchjd("ntkmtl", minibatches=None), ValueError, "at least 1, found None"),
        (lambda: as_torchjd("ntkmtl", minibatches=math.inf), ValueError, "at least 1, found inf"),
        # Weights in the Gramian's dtype would be rounded to whole numbers.
        (lambda: as_torchjd("ntkmtl")(torch.eye(3).long()), TypeError, "found torch.int64"),
        (lambda: as_torchjd("ntkmtl")([[1.0, 0.0], [0.0, 1.0]]), TypeError, "found <class 'list'>"),
        (lambda: as_torchjd("ntkmtl")(torch.ones(2, 3)), ValueError, r"found \(2, 3\)"),
        (
            lambda: as_torchjd("ntkmtl", minibatches=2)(torch.eye(3)),
            ValueError,
            r"n = 2 mini-batches per task, found \(3, 3\)",
        ),
    ],
)
def test_bad_input_of_as_torchjd(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_a_gradient_that_is_not_finite_raises() -> None:
    weighting = as_torchjd("ntkmtl")
    weighting(torch.eye(2))
    with pytest.raises(NonFiniteError, match="gradient of task 1 is nan at step 1"):
        weighting(torch.diag(torch.tensor([1.0, float("nan")])))


# ---------------------------------------------------------------------- TorchJD's in the Balancer


@pytest.mark.parametrize(
    "weighting",
    [AlignedMTLWeighting(), MGDAWeighting(), IMTLGWeighting(), SumWeighting()],
    ids=lambda w: type(w).__name__,
)
def test_torchjds_weighting_sees_the_exact_gramian(
    weighting: TorchJDWeighting[Any], setting: Setting
) -> None:
    expected = weighting(setting.gramian())
    z, losses = setting.losses()
    out = Balancer(from_torchjd(weighting)).backward(losses, features=z)
    torch.testing.assert_close(out.weights, expected, rtol=1e-9, atol=1e-12)
    ours = setting.grads()

    torch.autograd.backward(setting.losses()[1], list(expected))
    assert_same_grads(ours, setting.grads())


def test_the_same_step_as_torchjds_own_mtl_backward(setting: Setting) -> None:
    z, losses = setting.losses()
    mtl_backward(
        losses,
        features=z,
        tasks_params=[head.parameters() for head in setting.heads],
        shared_params=setting.parameters,
    )
    jac_to_grad(setting.parameters, AlignedMTL())
    theirs = setting.grads()

    z, losses = setting.losses()
    Balancer(from_torchjd(AlignedMTL()), weight_heads=False).backward(losses, features=z)
    assert_same_grads(theirs, setting.grads())


def test_it_takes_any_source(setting: Setting) -> None:
    z, losses = setting.losses()
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses])
    J = rows.flatten(1)
    expected = AlignedMTLWeighting()(J @ J.T)
    expected = expected.detach()
    out = Balancer(from_torchjd(AlignedMTLWeighting()), source="representation").backward(
        losses, features=z
    )
    # Rows of different samples do not meet in the representation: a mini-batch of one is the batch.
    torch.testing.assert_close(out.weights, expected, rtol=1e-9, atol=1e-12)


def test_converting_back_and_forth_gives_the_same_method() -> None:
    G = torch.tensor([[4.0, -1.0, 0.5], [-1.0, 1.0, 0.2], [0.5, 0.2, 2.0]], dtype=torch.float64)
    K = ExtendedNTK(G.reshape(3, 1, 3, 1))
    for method in KERNEL_METHODS[:5]:
        back = from_torchjd(as_torchjd(method))
        torch.testing.assert_close(back(K), create(method)(K), rtol=1e-12, atol=0.0)
    there = as_torchjd(from_torchjd(AlignedMTLWeighting()))
    torch.testing.assert_close(there(G), AlignedMTLWeighting()(G), rtol=1e-12, atol=0.0)


def test_a_task_without_a_label_is_not_among_the_rows(setting: Setting) -> None:
    z, found = setting.losses()
    losses = [found[0], None, found[2]]
    expected = AlignedMTLWeighting()(setting.gramian()[[0, 2]][:, [0, 2]])
    out = Balancer(from_torchjd(AlignedMTLWeighting()), tasks=k).backward(losses, features=z)
    assert out.weights[1] == 0
    torch.testing.assert_close(out.weights[[0, 2]], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighting", [ExcessMTLWeighting(), MoDoWeighting(), SDMGradWeighting()])
def test_a_weighting_of_gradients_or_of_two_batches_is_refused(
    weighting: TorchJDWeighting[Any],
) -> None:
    name = type(weighting).__name__
    for wrapped in (weighting, CRMOGMWeighting(weighting)):
        with pytest.raises(ValueError, match=f"{name} reads the gradients themselves"):
            from_torchjd(wrapped)


def test_other_objects_than_weightings_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a torchjd\.aggregation\.Weighting"):
        from_torchjd(Mean())  # type: ignore[arg-type]

    class TwoWeights(TorchJDWeighting[PSDMatrix]):
        def forward(self, gramian: Tensor, /) -> Tensor:
            return gramian[:2, 0]

    weighting = from_torchjd(TwoWeights())
    with pytest.raises(ValueError, match=r"shape \(2,\) for 3 tasks"):
        weighting(ExtendedNTK(torch.eye(3).reshape(3, 1, 3, 1)))


def test_a_weighting_with_a_state_needs_the_same_tasks_each_time() -> None:
    smooth = from_torchjd(CRMOGMWeighting(MGDAWeighting(), alpha=0.5))
    raw = MGDAWeighting()
    one = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    two = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(smooth(ExtendedNTK(one.reshape(2, 1, 2, 1))), raw(one))
    mixed = (raw(one) + raw(two)) / 2
    torch.testing.assert_close(smooth(ExtendedNTK(two.reshape(2, 1, 2, 1))), mixed)
    with pytest.raises(ValueError, match=r"a state for the tasks \[0, 1\].*\[0, 2\]"):
        smooth(ExtendedNTK(two.reshape(2, 1, 2, 1)), tasks=torch.tensor([0, 2]))
    for stateful in (GradVacWeighting(), as_torchjd("gradvac")):
        with pytest.raises(NotImplementedError, match="cannot be resumed"):
            Balancer(from_torchjd(stateful)).state_dict()


def test_state_dict_belongs_to_one_weighting() -> None:
    state = Balancer(from_torchjd(AlignedMTLWeighting()), tasks=2).state_dict()
    Balancer(from_torchjd(AlignedMTLWeighting())).load_state_dict(state)
    with pytest.raises(ValueError, match="AlignedMTLWeighting, this is ConstantWeighting"):
        Balancer(from_torchjd(ConstantWeighting(torch.ones(2)))).load_state_dict(state)
