"""``preset="published"`` against a reimplementation of the published code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel import oracle
from kernel.oracle import EXACT, Case, make_case
from ntkmtl import Balancer


def published_ntkmtl(case: Case, exponent: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """NTKMTL with n = 1, as its code has it; weights, shared and task-specific gradients.

    Each task's gradient is collected, the heads keep their own; the trace of the Gramian over its
    diagonal, to the power of the exponent, weighs the columns; the sum is multiplied by k ("to
    match the sum loss") and then clipped to norm 1.
    """
    losses = case.losses(case.features())
    k = len(losses)
    columns = torch.stack([oracle.flat_gradient(loss, case.shared) for loss in losses], dim=1)
    gramian = columns.T @ columns
    weights = (gramian.trace() / gramian.diagonal()) ** exponent
    total = (columns @ weights) * k
    leaves = [torch.nn.Parameter(torch.zeros_like(p)) for p in case.shared]
    for leaf, part in zip(leaves, total.split([p.numel() for p in leaves]), strict=True):
        leaf.grad = part.view_as(leaf).clone()
    torch.nn.utils.clip_grad_norm_(leaves, 1.0)
    heads = list(case.heads.parameters())
    grads = torch.autograd.grad(sum(losses), heads)
    return weights, [leaf.grad for leaf in leaves], list(grads)


def published_sr(case: Case, exponent: float, splits: int) -> tuple[Tensor, Tensor]:
    """NTKMTL-SR as its code has it: the weights and the loss that is differentiated.

    Losses are averaged over the chunks of the batch; each chunk's gradient with respect to the
    whole representation is flattened; the largest eigenvalues' sum over each, to the power of the
    exponent, weighs the mean over chunks.
    """
    z = case.features()
    per_sample = case.per_sample(z).T
    losses = torch.stack([chunk.mean(dim=0) for chunk in torch.chunk(per_sample, splits, dim=0)])
    largest = []
    for i in range(losses.shape[1]):
        rows = [
            torch.autograd.grad(losses[j][i], z, retain_graph=True)[0].flatten()
            for j in range(losses.shape[0])
        ]
        jacobian = torch.stack(rows)
        largest.append(torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1])
    values = torch.stack(largest)
    weights = (values.sum() / values) ** exponent
    return weights, (losses.mean(dim=0) * weights).sum()


def assert_grads(parameters: list[torch.nn.Parameter], expected: list[Tensor]) -> None:
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **EXACT)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("exponent", [0.5, 0.75])
@pytest.mark.parametrize("way", ["features", "shared", "hooked", "budget"])
def test_ntkmtl(way: str, exponent: float, scale: float) -> None:
    # Both below and above the clipping norm.
    case, other = make_case(), make_case()
    for which in (case, other):
        for head in which.heads:
            head.layers[2].weight.data *= scale
            head.layers[2].bias.data *= scale
        which.targets = which.targets * scale
    weights, shared, heads = published_ntkmtl(other, exponent)
    options = {
        "features": {},
        "shared": {"shared": case.shared},
        "hooked": {"shared": case.shared, "hooked": True},
        "budget": {"memory_budget": 0},
    }[way]
    balancer = Balancer("ntkmtl", preset="published", exponent=exponent, **options)
    z = case.features()
    features = z if way in ("features", "budget") else None
    out = balancer.backward(case.losses(z), features=features)
    torch.testing.assert_close(out.weights, weights, **EXACT)
    assert_grads(case.shared, shared)
    assert_grads(list(case.heads.parameters()), heads)


def test_ntkmtl_with_weights_reused() -> None:
    case, other = make_case(), make_case()
    _, shared, heads = published_ntkmtl(other, 0.5)
    balancer = Balancer("ntkmtl", preset="published", every=2)
    for _ in range(2):
        for p in case.parameters:
            p.grad = None
        z = case.features()
        balancer.backward(case.losses(z), features=z)
        assert_grads(case.shared, shared)
        assert_grads(list(case.heads.parameters()), heads)


def test_ntkmtl_clips_true_gradients_and_not_scaled_ones() -> None:
    case, other = make_case(), make_case()
    _, shared, heads = published_ntkmtl(other, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(case.parameters, lr=0.1)
    z = case.features()
    balancer = Balancer("ntkmtl", preset="published")
    balancer.backward(case.losses(z), features=z, scaler=scaler)
    scaler.unscale_(optimizer)
    # Clipping adds 1e-6 to the norm, here to 1024 times the norm.
    for found, expected in zip(case.parameters, [*shared, *heads], strict=True):
        torch.testing.assert_close(found.grad, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 0.75])
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("hooked", [None, True])
def test_ntkmtl_sr(hooked: bool | None, n: int, exponent: float) -> None:
    case, other = make_case(), make_case()
    weights, total = published_sr(other, exponent, n)
    total.backward()
    balancer = Balancer(
        "ntkmtl-sr", preset="published", minibatches=n, exponent=exponent, hooked=hooked
    )
    z = case.features()
    out = balancer.backward(case.losses(z), features=z)
    torch.testing.assert_close(out.weights, weights, **EXACT)
    assert_grads(case.parameters, [p.grad for p in other.parameters])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_ntkmtl_sr_where_chunks_are_unequal(n: int) -> None:
    # 7 samples: chunks of 4 and 3; 3, 3, 1; 2, 2, 2, 1; torch.chunk makes 4 of 5 and of 6 as well.
    case, other = make_case(), make_case()
    weights, _ = published_sr(other, 0.5, n)
    z = case.features()
    out = Balancer("ntkmtl-sr", preset="published", minibatches=n).backward(
        case.losses(z), features=z
    )
    torch.testing.assert_close(out.weights, weights, **EXACT)
    # The published loss is then a mean of chunk means; losses here are means over samples.
    losses = other.losses(other.features())
    sum(w * loss for w, loss in zip(weights, losses, strict=True)).backward()
    assert_grads(case.parameters, [p.grad for p in other.parameters])


def test_sum_instead_of_mean_is_a_factor() -> None:
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    plain = Balancer("ntkmtl-sr", pooling="blockwise", minibatches=1).backward(losses, features=z)
    other = make_case()
    z = other.features()
    out = Balancer("ntkmtl-sr", preset="published", minibatches=1).backward(
        other.losses(z), features=z
    )
    torch.testing.assert_close(out.weights, plain.weights * 3**0.5, **EXACT)
