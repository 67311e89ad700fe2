"""The residual's kernel against a dense one from forward-mode Jacobians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd

from ntkmtl.analysis import residual_ntk

VISCOSITY = 0.1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def points(count: int, seed: int) -> Tensor:
    return torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def residuals(model: nn.Module) -> dict[str, Tensor]:
    """Burgers' equation at 40 points, the initial values at 5."""
    inside = points(40, 1).requires_grad_()
    u = model(inside)[:, 0]
    (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
    (bend,) = torch.autograd.grad(slope[:, 1].sum(), inside, create_graph=True)
    start = points(5, 2) * torch.tensor([0.0, 1.0])
    return {
        "residual": slope[:, 0] + u * slope[:, 1] - VISCOSITY * bend[:, 1],
        "initial": model(start)[:, 0] + torch.sin(math.pi * start[:, 1]),
    }


def dense(model: nn.Module) -> list[Tensor]:
    """The two kernels without reverse mode: derivatives by x and by parameters forwards."""
    named = dict(model.named_parameters())

    def value(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, values, (x,))[0]

    def equation(values: dict[str, Tensor], x: Tensor) -> Tensor:
        slope = jacfwd(value, argnums=1)(values, x)
        bend = jacfwd(jacfwd(value, argnums=1), argnums=1)(values, x)
        return slope[0] + value(values, x) * slope[1] - VISCOSITY * bend[1, 1]

    def kernel(function, places: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rows = []
        for x in places:
            found = jacfwd(function)(named, x)
            rows.append(torch.cat([found[name].reshape(-1) for name in named]).detach())
        jacobian = torch.stack(rows)
        return jacobian @ jacobian.T

    return [
        kernel(equation, points(40, 1)),
        kernel(value, points(5, 2) * torch.tensor([0.0, 1.0])),
    ]


def test_exact() -> None:
    model = network()
    found, kernels = residual_ntk(residuals(model), model.parameters()), dense(model)
    assert found.names == ("residual", "initial")
    assert found.points == (40, 5)
    assert found.diagonals is not None
    for i, kernel in enumerate(kernels):
        exact = {"rtol": 1e-9, "atol": 0.0}
        torch.testing.assert_close(found.diagonals[i], kernel.diagonal(), **exact)
        torch.testing.assert_close(found.traces[i], kernel.trace(), **exact)
        torch.testing.assert_close(
            found.max_eigenvalues[i], torch.linalg.eigvalsh(kernel)[-1], **exact
        )
    traces = torch.stack([kernels[0].trace() / 40, kernels[1].trace() / 5])
    torch.testing.assert_close(found.weights(), traces.sum() / traces, rtol=1e-9, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_probes() -> None:
    model = network()
    found = residual_ntk(residuals(model), model.parameters(), probes=400)
    for i, kernel in enumerate(dense(model)):
        largest = torch.linalg.eigvalsh(kernel)[-1]
        torch.testing.assert_close(found.max_eigenvalues[i], largest, rtol=1e-9, atol=0)
        # Hutchinson's variance is twice the squared entries off the diagonal.
        off = kernel - torch.diag(kernel.diagonal())
        expected = float((2 * off.square().sum() / 400).sqrt())
        assert abs(float(found.traces[i] - kernel.trace())) < 4 * expected
        assert 0.8 * expected < float(found.trace_errors[i]) < 1.2 * expected
    assert found.diagonals is None


def test_probes_multiply_with_the_kernel() -> None:
    from ntkmtl.analysis.residuals import _Operator

    model = network()
    vectors = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operator = _Operator(residuals(model)["residual"], list(model.parameters()))
    for vector in vectors:
        expected = dense(model)[0] @ vector
        torch.testing.assert_close(operator @ vector, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("probes", [0, 3000])
def test_a_complex_parameter_is_two_real_ones_and_each_counts_once(probes: int) -> None:
    torch.manual_seed(0)
    pair = nn.Parameter(torch.randn(3, 2).double())
    x = points(6, 3)

    def residual(weight: Tensor) -> Tensor:
        return (x @ weight[:2].real + weight[2].imag * x[:, 0]).tanh() + weight[0].abs()

    expected = residual_ntk([residual(torch.view_as_complex(pair))], [pair])
    weight = nn.Parameter(torch.view_as_complex(pair.detach()))
    found = residual_ntk([residual(weight)], [weight, weight], probes=probes)
    torch.testing.assert_close(found.max_eigenvalues, expected.max_eigenvalues, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(
        found.traces, expected.traces, rtol=1e-9 if not probes else 0.1, atol=0.0
    )


def test_sparse_gradients() -> None:
    rows = torch.tensor([0, 2, 2, 1])
    dense, sparse = (nn.Embedding(3, 2, sparse=kind).double() for kind in (False, True))
    sparse.load_state_dict(dense.state_dict())
    first, second = (residual_ntk([e(rows).square().sum(1)], [e.weight]) for e in (dense, sparse))
    torch.testing.assert_close(second.traces, first.traces, rtol=1e-12, atol=0.0)


def test_bad_input() -> None:
    model = network()
    found = residuals(model)
    with pytest.raises(ValueError, match=r"residual initial.*no graph"):
        residual_ntk({"initial": found["initial"].detach()}, model.parameters())
    with pytest.raises(ValueError, match="no points"):
        residual_ntk([found["initial"][:0]], model.parameters())
    with pytest.raises(ValueError, match="0 trainable parameters"):
        residual_ntk(found, [])
    with pytest.raises(ValueError, match="probes must not be negative"):
        residual_ntk(found, model.parameters(), probes=-1)
    with pytest.raises(ValueError, match="residual initial is complex"):
        residual_ntk({"initial": found["initial"] * 1j}, model.parameters())
    other = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="traces above 0"):
        residual_ntk(found, [other]).weights()
