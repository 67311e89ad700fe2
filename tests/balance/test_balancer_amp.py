"""Mixed precision: the gradient scaler, and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernel.oracle import Case, make_case
from ntkmtl import Balancer, branch
from ntkmtl.weighting import accepted_options, create, names, spec

METHODS = [name for name in names() if name != "stl"]
SEEDED = tuple(name for name in METHODS if "seed" in accepted_options(name))
IMPOSSIBLE = [
    *((name, "hooked") for name in METHODS if spec(name).requires == "jacobian"),
    *(
        (name, form)
        for name in METHODS
        if create(name).has_head_objective
        for form in ("hooked", "shared")
    ),
    *((name, "shared") for name in METHODS if spec(name).requires == "kernel"),
    ("ntkmtl-tk", "shared"),
]
# A factor of 1e28 is nothing to a logarithm.
OF_LOGARITHMS = [name for name in METHODS if spec(name).defaults.get("log_losses")]


def make_balancer(method: str, **options: Any) -> Balancer:
    return Balancer(method, seed=0, **options) if method in SEEDED else Balancer(method, **options)


def single(case: Case) -> Case:
    case.trunk.float()
    case.heads.float()
    case.inputs = tuple(x.float() for x in case.inputs)
    case.targets = case.targets.float()
    return case


@pytest.mark.parametrize(
    ("method", "form"),
    [(m, f) for m in METHODS for f in ("tensor", "branch", "hooked") if (m, f) not in IMPOSSIBLE],
)
def test_scaler_changes_nothing_but_the_scale(method: str, form: str) -> None:
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=4096.0)):
        case = make_case()
        options: dict[str, Any] = {"hooked": True} if form == "hooked" else {}
        if spec(method).requires != "losses":
            options["weight_heads"] = True
        balancer = make_balancer(method, tasks=3, **options)
        parameters = [*case.parameters, *balancer.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        z = case.features()
        views = branch(z, 3) if form == "branch" else z
        out = balancer.backward(case.losses(views), features=views, scaler=scaler)
        assert not out.skipped
        if scaler is not None:
            scaler.unscale_(optimizer)
        results.append((out.weights, [p.grad for p in parameters]))
    (plain, grads), (scaled, unscaled) = results
    rough = 1e-4 if method == "cagrad" else 1e-9
    torch.testing.assert_close(scaled, plain, rtol=rough, atol=1e-12)
    for a, b in zip(grads, unscaled, strict=True):
        torch.testing.assert_close(b, a, rtol=max(rough, 1e-6), atol=1e-9)


def test_disabled_scaler() -> None:
    case, plain = make_case(), make_case()
    z = case.features()
    Balancer("ntkmtl-sr").backward(
        case.losses(z), features=z, scaler=torch.amp.GradScaler("cpu", enabled=False)
    )
    z = plain.features()
    Balancer("ntkmtl-sr").backward(plain.losses(z), features=z)
    for p, q in zip(case.parameters, plain.parameters, strict=True):
        assert torch.equal(p.grad, q.grad)


def broken_steps() -> list[Any]:
    """Methods, kinds and forms that go together."""
    made = []
    for method in METHODS:
        if spec(method).requires == "losses":
            made.append((method, "loss", "tensor"))
            continue
        for form in ("tensor", "branch", "hooked", "shared"):
            if (method, form) not in IMPOSSIBLE:
                kinds = ("loss", "gradient", "overflow")
                made += [
                    (method, kind, form)
                    for kind in kinds
                    if (method, kind) not in [(m, "overflow") for m in OF_LOGARITHMS]
                ]
    return [*made, ("ls", "gradient", "tensor"), ("ls", "overflow", "tensor")]


@pytest.mark.parametrize(("method", "kind", "form"), broken_steps())
def test_scaler_skips_a_step_that_is_not_finite(method: str, kind: str, form: str) -> None:
    of_losses = spec(method).requires == "losses"
    case = single(make_case())
    options: dict[str, Any] = {} if of_losses else {"weight_heads": True}
    if form == "hooked":
        options["hooked"] = True
    if form == "shared":
        options |= {"source": "exact", "shared": case.shared, "minibatches": 1}
    balancer = make_balancer(method, tasks=3, **options)
    optimizer = torch.optim.SGD([*case.parameters, *balancer.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.detach().clone() for p in case.parameters]

    def step(broken: bool) -> Any:
        optimizer.zero_grad()
        z = case.features()
        views: Any = branch(z, 3) if form == "branch" else [z] * 3
        losses: list[Tensor] = case.losses(views)
        if broken and kind == "loss":
            losses[1] = losses[1] * float("inf")
        elif broken and kind == "gradient":
            losses[1] = losses[1] + (case.heads[1](views[1]).sum() * 0.0).sqrt()
        elif broken:
            # Finite, also in its gradient, but not once it is scaled.
            losses[1] = losses[1] * 1e28
        features = None if form == "shared" else views if form == "branch" else z
        out = balancer.backward(losses, features=features, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        balancer.after_step([loss.detach() for loss in losses])
        return out

    out = step(broken=True)
    assert all(torch.equal(p, q) for p, q in zip(case.parameters, before, strict=True))
    assert scaler.get_scale() == 2.0**39
    if not of_losses or kind == "loss":
        assert out.skipped
        assert out.weights.tolist() == [0.0, 0.0, 0.0]
    # Training goes on.
    out = step(broken=False)
    assert not out.skipped
    assert out.weights.isfinite().all()
    assert not all(torch.equal(p, q) for p, q in zip(case.parameters, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_autocast_in_the_forward_pass(method: str, dtype: torch.dtype) -> None:
    case = single(make_case())
    balancer = make_balancer(method)
    with torch.autocast("cpu", dtype):
        z = case.features()
        losses = case.losses(z)
    assert z.dtype == dtype
    out = balancer.backward(losses, features=z)
    assert out.weights.isfinite().all()
    for p in case.parameters:
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()


@pytest.mark.parametrize("form", ["tensor", "branch"])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "nash-mtl", "graddrop"])
def test_autocast_around_the_backward_call_changes_nothing(method: str, form: str) -> None:
    # Many loops call backward within the context; the kernel is not to be made in half precision.
    results = []
    for inside in (False, True):
        case = single(make_case())
        balancer = make_balancer(method, minibatches=2)
        z = case.features()
        views = branch(z, 3) if form == "branch" else z
        losses = case.losses(views)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            out = balancer.backward(losses, features=views)
        results.append((out.weights, [p.grad for p in case.parameters]))
    (plain, grads), (weights, cast) = results
    torch.testing.assert_close(weights, plain, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, cast, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
