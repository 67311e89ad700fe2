"""Kernels across two processes, by slices and by gathering, against one joint Jacobian."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks_worker as worker
import torch
from torch import Tensor

import two_processes

pytestmark = pytest.mark.integration

SOURCES = ("pooled", "kernel", "layer", "blockwise", "exact")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    two_processes.run(worker.main, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def jacobian(source: str) -> Tensor:
    """Gradients of every mini-batch of both processes, shape (k, R n, entries), written out."""
    rows = []
    for rank in range(2):
        gradients, features, exact, partition = worker.own(rank)
        if source == "exact":
            rows.append(exact)
            continue
        batch = worker.BATCHES[rank]
        before = sum(worker.BATCHES[:rank])
        start = 0
        for size in partition.sizes:
            total = 0.0
            for s in range(start, start + size):
                # What stands for d z_s / d theta: all samples alike, each by itself, or inputs.
                if source == "pooled":
                    inputs = torch.ones(1, dtype=torch.float64)
                elif source == "blockwise":
                    inputs = torch.eye(sum(worker.BATCHES), dtype=torch.float64)[before + s]
                elif source == "layer":
                    inputs = torch.cat([features[s], torch.ones(1, dtype=torch.float64)])
                else:
                    inputs = features[s]
                total = total + torch.einsum("kd,e->kde", gradients[:, s], inputs)
            rows.append((total * batch / size).flatten(1)[:, None])
            start += size
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", ["slices", "gathered"])
def test_the_kernel_of_all_processes(found: list[dict[str, Tensor]], way: str, source: str) -> None:
    J = jacobian(source)
    values = torch.einsum("iup,jvp->iujv", J, J)
    blocks = torch.einsum("iuiv->iuv", values)
    share = torch.cat(list(worker.shares()), dim=1)
    gramian = torch.einsum("iu,iujv,jv->ij", share, values, share)
    # Rounding is relative to the tasks' own sizes: they differ by twelve orders of magnitude.
    size = blocks.diagonal(dim1=1, dim2=2).amax(dim=1).sqrt()
    for mine in found:
        for key, expected, scale in (
            ("True", values, size[:, None, None, None] * size[:, None]),
            ("False", blocks, size.square()[:, None, None]),
            ("mean", gramian, size[:, None] * size),
        ):
            result = mine[f"{way}-{source}-{key}"]
            assert result.shape == expected.shape
            torch.testing.assert_close(result / scale, expected / scale, rtol=1e-9, atol=1e-10)


def test_eigenvalues_divided_among_processes(found: list[dict[str, Tensor]]) -> None:
    J = jacobian("pooled")
    expected = torch.linalg.eigvalsh(torch.einsum("iup,ivp->iuv", J, J))[:, -1]
    for mine in found:
        torch.testing.assert_close(mine["eigenvalues"], expected, rtol=1e-9, atol=0.0)


def test_slices_and_gathering_agree(found: list[dict[str, Tensor]]) -> None:
    first, second = found
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), "every process ends with the same numbers"


def test_no_piece_is_larger_than_the_buffer(found: list[dict[str, Tensor]]) -> None:
    """The matrix of the exact source alone holds 1776 bytes; pieces of it hold 400."""
    for mine in found:
        assert 300 < int(mine["largest"]) <= 400
