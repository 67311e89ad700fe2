"""Worker process of the tests of kernels across processes."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel import _ranks as module
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._pooling import kernel_from_rows
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._sources import exact_kernel

TASKS, MINIBATCHES, BATCHES, WIDTH, ENTRIES = 3, 2, (5, 7), 6, 37
SCALES = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)[:, None, None]


def own(rank: int) -> tuple[Tensor, Tensor, Tensor, Partition]:
    """A process's gradients (k, B, D), features (B, D), rows (k, n, P) and mini-batches."""
    generator = torch.Generator().manual_seed(rank)
    batch = BATCHES[rank]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gradients, features = normal(TASKS, batch, WIDTH) * SCALES, normal(batch, WIDTH)
    return (
        gradients,
        features,
        normal(TASKS, MINIBATCHES, ENTRIES),
        Partition.of(batch, MINIBATCHES),
    )


def shares() -> Tensor:
    """Share of each mini-batch of each process, shape (k, n) by process; uneven."""
    return torch.stack(
        [torch.full((TASKS, MINIBATCHES), value, dtype=torch.float64) for value in (0.1, 0.4)]
    )


def kernels(ranks: Ranks, rank: int, full: bool) -> dict[str, ExtendedNTK]:
    gradients, features, rows, partition = own(rank)
    local = kernel_from_rows(gradients, partition, "blockwise", full=full)
    return {
        "pooled": ranks.pooled(gradients, partition, full=full),
        "kernel": ranks.through_features(gradients, features, partition, constant=0.0, full=full),
        "layer": ranks.through_features(gradients, features, partition, constant=1.0, full=full),
        "blockwise": ranks.blockwise(local),
        "exact": exact_kernel(
            lambda i: rows[i], TASKS, partition.shares, full=full, keep=False, ranks=ranks
        )[0],
    }


def main(rank: int, folder: str) -> None:
    """Make every kernel in every way, results to ``RANK.pt``."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meet = (Path(folder) / "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    found: dict[str, Tensor] = {}
    largest = 0
    exchange = dist.all_to_all_single

    def noted(received: Tensor, sent: Tensor, **options: object) -> object:
        nonlocal largest
        largest = max(largest, sent.numel() * sent.element_size())
        return exchange(received, sent, **options)

    try:
        for way, slices in (("slices", True), ("gathered", False)):
            with (
                mock.patch.object(Ranks, "_slices_are_less", lambda *_, slices=slices: slices),
                mock.patch.object(dist, "all_to_all_single", noted),
                # Small, so that there are several pieces, the last of another size.
                mock.patch.object(module, "_BUFFER", 400),
            ):
                ranks = Ranks()
                for full in (True, False):
                    for name, kernel in kernels(ranks, rank, full).items():
                        found[f"{way}-{name}-{full}"] = kernel.values if full else kernel.blocks
                for name, kernel in kernels(ranks.averaging(shares()[rank]), rank, True).items():
                    found[f"{way}-{name}-mean"] = kernel.gramian()
        kernel = kernels(Ranks(), rank, True)["pooled"]
        with mock.patch.object(module, "_SOLVED_ALONE", 1):
            found["eigenvalues"] = Ranks().max_eigenvalues(kernel)
        found["largest"] = torch.tensor(largest)
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
