"""Methods of ``ExtendedNTK``."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from kernel import oracle
from kernel.oracle import EXACT, make_case
from ntkmtl import ExtendedNTK, extended_ntk

K, N, P = 3, 4, 6


def draw(k: int = K, n: int = N, rank: int = P) -> tuple[Tensor, Tensor]:
    """Rows of shape (k, n, P) and their kernel."""
    rows = torch.randn(k, n, rank, dtype=torch.float64)
    return rows, torch.einsum("iup,jvp->iujv", rows, rows)


def test_blocks() -> None:
    rows, values = draw()
    kernel = ExtendedNTK(values)
    assert (kernel.tasks, kernel.minibatches, kernel.has_all_blocks) == (K, N, True)
    assert kernel.values.shape == (K, N, K, N)
    assert kernel.blocks.shape == (K, N, N)
    for i in range(K):
        torch.testing.assert_close(kernel.blocks[i], rows[i] @ rows[i].T)
        for j in range(K):
            torch.testing.assert_close(kernel.block(i, j), rows[i] @ rows[j].T)


def test_diagonal_blocks_only() -> None:
    _, values = draw()
    blocks = ExtendedNTK(values).blocks
    kernel = ExtendedNTK(blocks=blocks)
    assert not kernel.has_all_blocks
    assert torch.equal(kernel.block(1, 1), blocks[1])
    for missing in (
        lambda: kernel.values,
        lambda: kernel.block(0, 1),
        kernel.gramian,
        kernel.affinity,
    ):
        with pytest.raises(ValueError, match="diagonal blocks only"):
            missing()
    assert "diagonal blocks only" in repr(kernel)
    assert "all blocks" in repr(ExtendedNTK(values))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("rank", [1, 6])
@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e24])
def test_max_eigenvalues(n: int, rank: int, scale: float) -> None:
    _, values = draw(n=n, rank=rank)
    expected = torch.stack([torch.linalg.eigvalsh(values[i, :, i, :])[-1] for i in range(K)])
    found = ExtendedNTK(values * scale).max_eigenvalues()
    torch.testing.assert_close(found, expected * scale, rtol=1e-12, atol=0.0)
    blocks = ExtendedNTK(values * scale).blocks
    assert torch.equal(ExtendedNTK(blocks=blocks).max_eigenvalues(), found)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_max_eigenvalues_of_diagonal_blocks(n: int) -> None:
    diagonal = torch.rand(K, n, dtype=torch.float64)
    blocks = torch.diag_embed(diagonal)
    expected = torch.linalg.eigvalsh(blocks)[:, -1]
    for known in (True, False):
        found = ExtendedNTK(blocks=blocks, diagonal=known).max_eigenvalues()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_max_eigenvalues_are_never_negative_and_float64() -> None:
    blocks = torch.tensor([[[-1e-20]], [[4.0]]], dtype=torch.float32)
    found = ExtendedNTK(blocks=blocks).max_eigenvalues()
    assert found.dtype == torch.float64
    assert found.tolist() == [0.0, 4.0]


def test_gramian_is_the_average_over_minibatches() -> None:
    rows, values = draw()
    means = rows.mean(dim=1)
    torch.testing.assert_close(ExtendedNTK(values).gramian(), means @ means.T, **EXACT)
    shares = torch.rand(K, N, dtype=torch.float64)
    shares = shares / shares.sum(dim=1, keepdim=True)
    means = (shares[:, :, None] * rows).sum(dim=1)
    kernel = ExtendedNTK(values, shares=shares)
    torch.testing.assert_close(kernel.gramian(), means @ means.T, **EXACT)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("source", ["pooled", "blockwise", "kernel", "exact"])
@pytest.mark.parametrize("labels", [False, True])
def test_gramian_is_that_of_the_whole_batch_whatever_n(source: str, n: int, labels: bool) -> None:
    case = make_case()
    z = case.features()
    counts = torch.ones(oracle.TASKS, oracle.BATCH)
    if labels:
        counts = torch.randint(0, 3, counts.shape).double()
        counts[:, 0] = 1.0
    sums = case.per_sample(z) * counts
    losses = [row.sum() / own.sum() for row, own in zip(sums, counts, strict=True)]
    parameters = case.shared if source == "exact" else None
    pooling = "pooled" if source == "exact" else source

    def gramian(minibatches: int) -> Tensor:
        return extended_ntk(
            losses, z, parameters, minibatches=minibatches, pooling=pooling, counts=counts
        ).gramian()

    torch.testing.assert_close(gramian(n), gramian(1), **EXACT)


def test_affinity_is_the_cosine() -> None:
    rows, values = draw(n=1)
    expected = torch.nn.functional.cosine_similarity(rows[:, None, 0], rows[None, :, 0], dim=2)
    for scale in (1e-30, 1.0, 1e30):
        found = ExtendedNTK(values * scale).affinity()
        torch.testing.assert_close(found, expected, **EXACT)
    assert torch.equal(found.diagonal(), torch.ones(K, dtype=torch.float64))


def test_affinity_of_a_vanishing_gradient_is_zero() -> None:
    rows, _ = draw(n=1)
    rows[1] = 0
    affinity = ExtendedNTK(torch.einsum("iup,jvp->iujv", rows, rows)).affinity()
    assert affinity[1].tolist() == [0.0, 0.0, 0.0]
    assert affinity[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert affinity[0, 0] == 1.0


def test_weighted_is_the_kernel_of_weighted_losses() -> None:
    # Proposition 3.3: with losses w_i l_i the kernel is w w^T times K, block by block.
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    weights = torch.tensor([0.5, 3.0, 1e-3], dtype=torch.float64)
    kernel = extended_ntk(losses, z, case.shared, minibatches=3)
    expected = extended_ntk(
        [loss * w for loss, w in zip(losses, weights, strict=True)], z, case.shared, minibatches=3
    )
    torch.testing.assert_close(kernel.weighted(weights).values, expected.values, **EXACT)
    diagonal = ExtendedNTK(blocks=kernel.blocks).weighted(weights)
    torch.testing.assert_close(diagonal.blocks, expected.blocks, **EXACT)
    # Eq. 14 and 15: under NTKMTL's weights all largest eigenvalues are the mean of the old ones.
    largest = kernel.max_eigenvalues()
    balanced = kernel.weighted((largest.mean() / largest).sqrt()).max_eigenvalues()
    torch.testing.assert_close(balanced, largest.mean().expand(3), **EXACT)
    with pytest.raises(ValueError, match=r"\(3,\), found \(2,\)"):
        kernel.weighted(weights[:2])


def test_weighted_keeps_shares() -> None:
    rows, values = draw(n=2)
    shares = torch.tensor([[0.25, 0.75]] * K, dtype=torch.float64)
    kernel = ExtendedNTK(values, shares=shares).weighted(torch.full((K,), 2.0))
    means = 2 * (shares[:, :, None] * rows).sum(dim=1)
    torch.testing.assert_close(kernel.gramian(), means @ means.T, **EXACT)


def test_pickle() -> None:
    _, values = draw()
    again = pickle.loads(pickle.dumps(ExtendedNTK(values)))  # noqa: S301 - made in this line
    assert torch.equal(again.values, values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either values"),
        ({"values": torch.ones(1, 1, 1, 1), "blocks": torch.ones(1, 1, 1)}, "either values"),
        ({"values": torch.ones(2, 2)}, r"\(k, n, k, n\), found \(2, 2\)"),
        ({"values": torch.ones(2, 1, 2, 3)}, r"\(k, n, k, n\)"),
        ({"values": torch.ones(0, 1, 0, 1)}, r"\(k, n, k, n\)"),
        ({"blocks": torch.ones(2, 3, 4)}, r"\(k, n, n\), found \(2, 3, 4\)"),
        ({"blocks": torch.ones(2, 3, 3), "shares": torch.ones(2, 2)}, r"\(2, 3\), found \(2, 2\)"),
    ],
)
def test_wrong_shapes(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExtendedNTK(**arguments)


def test_affinity_of_a_gradient_that_is_not_finite_is_nan() -> None:
    gradients = torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [1.0, 1.0]])
    affinity = ExtendedNTK((gradients @ gradients.T).view(3, 1, 3, 1)).affinity()
    assert affinity[1].isnan().all()
    assert affinity[:, 1].isnan().all()
    assert float(affinity[0, 2]) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("task", [-1, 2])
def test_positions_of_no_task_are_refused(task: int) -> None:
    kernel = ExtendedNTK(torch.eye(2).view(2, 1, 2, 1))
    with pytest.raises(ValueError, match=f"from 0 to 1 here, found {task}"):
        kernel.select([0, task])
    with pytest.raises(ValueError, match=f"from 0 to 1 here, found {task}"):
        kernel.block(0, task)
