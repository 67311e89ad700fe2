"""Matrix-free estimates of spectra against known spectra."""

from __future__ import annotations

import builtins
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import analysis
from ntkmtl.analysis.spectrum import (
    estimate_trace,
    lanczos,
    linear_operator,
    spectral_density,
    task_eigenvalues,
    top_eigenvalues,
)
from ntkmtl.errors import MissingExtraError
from ntkmtl.kernel import OutputNTKOperator, output_ntk


def _matrix(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix of known eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * eigenvalues) @ q.T


def _falling(n: int = 120) -> Tensor:
    """Like an NTK's: a few large ones and a long tail."""
    return 1000.0 / torch.arange(1.0, n + 1, dtype=torch.float64) ** 2


class _Counted:
    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device
        self.products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        assert vector.dtype == self.dtype
        self.products += 1
        return self.matrix @ vector


class TestTopEigenvalues:
    @pytest.mark.parametrize("size", [1, 5, 33, 120])
    @pytest.mark.parametrize("which", ["largest", "smallest"])
    def test_known_spectrum(self, size: int, which: Any) -> None:
        values = torch.linspace(1.0, 3.0, size, dtype=torch.float64) ** 5
        count = min(3, size)
        found = top_eigenvalues(_matrix(values), count, which=which)
        expected = values.flip(0)[:count] if which == "largest" else values[:count]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)

    def test_all_of_them(self) -> None:
        values = _falling(40)
        found = top_eigenvalues(_matrix(values), 40)
        torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-10)

    def test_float32_and_few_products(self) -> None:
        operator = _Counted(_matrix(_falling()).float())
        found = top_eigenvalues(operator)
        torch.testing.assert_close(found, _falling()[:1], rtol=1e-5, atol=0)
        assert operator.products <= 15

    @pytest.mark.parametrize("which", ["largest", "smallest"])
    @pytest.mark.parametrize("count", [2, 3, 5, 9])
    @pytest.mark.parametrize("copies", [2, 4])
    def test_repeated_eigenvalues(self, copies: int, count: int, which: Any) -> None:
        values = torch.linspace(1.0, 3.0, 40, dtype=torch.float64) ** 5
        matrix = torch.kron(torch.eye(copies, dtype=torch.float64), _matrix(values))
        every = values.repeat_interleave(copies)
        expected = every.flip(0)[:count] if which == "largest" else every[:count]
        found = top_eigenvalues(matrix, count, which=which)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)

    def test_repeated_eigenvalues_in_float32(self) -> None:
        matrix = torch.kron(torch.eye(4), _matrix(_falling(40)).float())
        expected = _falling(40).repeat_interleave(4)[:6]
        torch.testing.assert_close(top_eigenvalues(matrix, 6), expected, rtol=1e-5, atol=0)

    def test_a_matrix_of_one_eigenvalue_and_one_of_rank_one(self) -> None:
        assert top_eigenvalues(3 * torch.eye(50), 4).tolist() == pytest.approx([3.0] * 4)
        one = torch.ones(50, 50, dtype=torch.float64)
        found = top_eigenvalues(one, 3)
        torch.testing.assert_close(found, torch.tensor([50.0, 0, 0]).double(), rtol=0, atol=1e-9)

    def test_the_zero_matrix(self) -> None:
        for size in (3, 50):
            assert top_eigenvalues(torch.zeros(size, size)).tolist() == [0.0]

    def test_the_seed_decides(self) -> None:
        matrix = _matrix(_falling())
        assert torch.equal(top_eigenvalues(matrix, 2), top_eigenvalues(matrix, 2))
        state = torch.get_rng_state()
        top_eigenvalues(matrix, 2, seed=3)
        assert torch.equal(torch.get_rng_state(), state)

    def test_not_converged(self) -> None:
        # The smallest of a long tail lie too close together for a few products.
        matrix = _matrix(_falling(400))
        with pytest.raises(RuntimeError, match=r"0 of 1 smallest .* within 30 products; raise"):
            top_eigenvalues(matrix, which="smallest", tolerance=1e-12, max_products=30)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ((torch.eye(3), 0), r"count must be in 1\.\.3, found 0"),
            ((torch.eye(3), 4), r"count must be in 1\.\.3, found 4"),
            ((torch.zeros(2, 3),), r"must be square, of shape \(R, R\), found \(2, 3\)"),
        ],
    )
    def test_what_does_not_fit(self, arguments: Any, text: str) -> None:
        with pytest.raises(ValueError, match=text):
            top_eigenvalues(*arguments)
        with pytest.raises(ValueError, match="which must be largest or smallest, found 'LA'"):
            top_eigenvalues(torch.eye(3), which="LA")  # type: ignore[arg-type]

    def test_without_scipy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def absent(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("scipy"):
                raise ImportError("no", name="scipy")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", absent)
        for name in [n for n in sys.modules if n.startswith("scipy")]:
            monkeypatch.delitem(sys.modules, name)
        for call in (top_eigenvalues, linear_operator):
            with pytest.raises(MissingExtraError, match=r"ntkmtl\[bench\]"):
                call(_matrix(_falling()))


class TestLanczos:
    def test_its_matrix_has_the_spectrum(self) -> None:
        values = _falling(30)
        diagonal, beside = lanczos(_matrix(values), torch.ones(30), 30)
        tridiagonal = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
        found = torch.linalg.eigvalsh(tridiagonal).flip(0)
        torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-9)

    def test_no_spurious_copies_of_eigenvalues(self) -> None:
        # Without reorthogonalisation an eigenvalue far above the rest comes again after it has
        # converged: here 1e6 would be there twice within 40 steps.
        values = torch.cat([torch.linspace(0.5, 1.0, 99).double(), torch.tensor([1e6]).double()])
        diagonal, beside = lanczos(_matrix(values), torch.ones(100), 40)
        tridiagonal = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
        assert int((torch.linalg.eigvalsh(tridiagonal) > 2.0).sum()) == 1

    def test_it_stops_at_an_invariant_subspace(self) -> None:
        values = torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0], dtype=torch.float64)
        diagonal, beside = lanczos(_matrix(values), torch.ones(5), 5)
        assert (len(diagonal), len(beside)) == (2, 1)
        diagonal, beside = lanczos(torch.zeros(4, 4), torch.ones(4), 3)
        assert (diagonal.tolist(), beside.tolist()) == ([0.0], [])

    def test_what_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"start must have shape \(3,\), found \(2,\)"):
            lanczos(torch.eye(3), torch.ones(2), 1)
        with pytest.raises(ValueError, match="start must not be zero"):
            lanczos(torch.eye(3), torch.zeros(3), 1)
        with pytest.raises(ValueError, match="Found steps=0"):
            lanczos(torch.eye(3), torch.ones(3), 0)


class TestTrace:
    def test_unbiased_with_the_right_standard_error(self) -> None:
        matrix = _matrix(_falling())
        exact = float(_falling().sum())
        # Variance per probe: 2 (sum of squares of all entries - of the diagonal).
        variance = 2 * float(matrix.square().sum() - matrix.diagonal().square().sum())
        one = estimate_trace(matrix, 2000)
        assert one.standard_error == pytest.approx((variance / 2000) ** 0.5, rel=0.15)
        assert abs(one.value - exact) < 4 * one.standard_error

    def test_diagonal_matrices_are_exact(self) -> None:
        estimate = estimate_trace(torch.diag(_falling()), 1)
        assert estimate.value == pytest.approx(float(_falling().sum()), rel=1e-12)
        assert math.isnan(estimate.standard_error)
        with pytest.raises(ValueError, match="Found probes=0"):
            estimate_trace(torch.eye(2), 0)


class TestDensity:
    def test_moments_of_a_probe_are_exact(self) -> None:
        # Gauss quadrature: z^T K^p z up to degree 2 steps - 1, for the probe's own z.
        matrix = _matrix(_falling(20)) / 1000
        found = spectral_density(matrix, steps=3, probes=1, seed=7)
        generator = torch.Generator().manual_seed(7)
        z = torch.randint(0, 2, (20,), generator=generator).double() * 2 - 1
        for order in range(6):
            expected = float(z @ torch.linalg.matrix_power(matrix, order) @ z)
            assert found.moment(order).value == pytest.approx(expected, rel=1e-9)
        expected = float(z @ torch.linalg.matrix_power(matrix, 6) @ z)
        assert found.moment(6).value != pytest.approx(expected, rel=1e-9)

    def test_against_the_exact_spectrum(self) -> None:
        values = _falling(200)
        found = spectral_density(_matrix(values), steps=40, probes=100)
        trace = found.moment(1)
        assert abs(trace.value - float(values.sum())) < 4 * trace.standard_error
        # The nine above 10 stand apart, so that Lanczos has a node at each of them.
        above = found.count_above(10.5)
        assert abs(above.value - 9) < 4 * above.standard_error
        assert found.effective_rank() == pytest.approx(
            float(analysis.effective_rank(values)), rel=0.05
        )
        assert found.participation_ratio() == pytest.approx(
            float(analysis.participation_ratio(values)), rel=0.1
        )
        condition = found.condition_number(floor=0.0)
        assert 1.0 < condition <= float(values[0] / values[-1]) * (1 + 1e-9)

    def test_smoothed(self) -> None:
        # Two heaps of equal size, at 1 and at 3.
        values = torch.tensor([1.0] * 50 + [3.0] * 50, dtype=torch.float64)
        found = spectral_density(_matrix(values), steps=5, probes=20)
        grid = torch.linspace(-1, 5, 1201, dtype=torch.float64)
        density = found.density(grid, 0.1)
        assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
        left = torch.trapezoid(density[grid < 2], grid[grid < 2])
        assert float(left) == pytest.approx(0.5, abs=0.05)
        assert float(grid[density.argmax()]) in (pytest.approx(1.0), pytest.approx(3.0))
        decades = torch.linspace(-2, 2, 2001, dtype=torch.float64)
        logged = found.density(decades, 0.05, log=True)
        assert float(torch.trapezoid(logged, decades)) == pytest.approx(1.0, abs=1e-6)
        high = decades > math.log10(3) / 2
        share = torch.trapezoid(logged[high], decades[high])
        assert float(share) == pytest.approx(1 - float(left), abs=1e-3)

    def test_the_zero_matrix(self) -> None:
        found = spectral_density(torch.zeros(50, 50), steps=4, probes=2)
        assert found.moment(1).value == 0.0
        assert found.effective_rank() == 0.0
        assert found.participation_ratio() == 0.0
        assert math.isnan(found.condition_number())

    def test_what_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match="Found steps=0"):
            spectral_density(torch.eye(3), steps=0)
        found = spectral_density(torch.eye(3))
        with pytest.raises(ValueError, match="Found order=-1"):
            found.moment(-1)
        with pytest.raises(ValueError, match="width must be positive"):
            found.density(torch.zeros(1), 0.0)
        with pytest.raises(ValueError, match=r"floor must be in \[0, 1\)"):
            found.condition_number(1.0)


class TestKernels:
    """Operators of networks against their dense kernels."""

    @staticmethod
    def _pair(**options: Any) -> tuple[OutputNTKOperator, Any]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        x = torch.randn(40, 4, dtype=torch.float64)
        operator = OutputNTKOperator(network, x, task_dim=1, **options)
        return operator, output_ntk(network, x, task_dim=1)

    def test_eigenvalues(self) -> None:
        operator, dense = self._pair(chunk_size=16)
        found = top_eigenvalues(operator, 5)
        torch.testing.assert_close(found, dense.eigenvalues()[:5], rtol=1e-8, atol=0)
        tasks = task_eigenvalues(operator, 2)
        for i in range(3):
            torch.testing.assert_close(tasks[i], dense.eigenvalues(i)[:2], rtol=1e-8, atol=0)
        torch.testing.assert_close(tasks[:, 0], dense.max_eigenvalues(), rtol=1e-8, atol=0)

    def test_linear_heads_on_the_same_features_repeat_eigenvalues(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 4)).double()
        x = torch.randn(40, 5, dtype=torch.float64)
        heads = OutputNTKOperator(network, x, lambda name, _: name.startswith("2."), task_dim=1)
        z = network[1](network[0](x)).detach()
        features = torch.cat([z, torch.ones(40, 1, dtype=torch.float64)], dim=1)
        expected = torch.linalg.eigvalsh(features @ features.T).flip(0).repeat_interleave(4)[:6]
        torch.testing.assert_close(top_eigenvalues(heads, 6), expected, rtol=1e-8, atol=0)

    def test_trace_and_density(self) -> None:
        operator, dense = self._pair()
        exact = float(dense.matrix().trace())
        estimate = estimate_trace(operator, 32)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error
        found = spectral_density(operator, steps=15, probes=8)
        moment = found.moment(1)
        assert abs(moment.value - exact) < 4 * moment.standard_error
        assert float(found.nodes.max()) == pytest.approx(float(dense.eigenvalues()[0]), rel=1e-6)


def test_names_are_exported_lazily() -> None:
    assert analysis.top_eigenvalues is top_eigenvalues
    assert "spectral_density" in dir(analysis)
