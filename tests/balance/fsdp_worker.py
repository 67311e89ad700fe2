"""Worker process of the tests of balancing under ``fully_shard``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ddp_worker
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ntkmtl import Balancer

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ls", {}),
    ("uw", {}),
    ("ntkmtl-sr", {"minibatches": 2}),
    ("ntkmtl-tk", {"minibatches": 2}),
    ("nash-mtl", {"source": "representation", "weight_heads": True}),
    ("ntkmtl", {"minibatches": 2, "weight_heads": True}),
    ("nash-mtl", {"source": "exact", "weight_heads": True}),
]


def network(layers: bool) -> nn.Module:
    """The network spread over the processes: each layer by itself, or all at once."""
    net = ddp_worker.network()
    mesh = init_device_mesh("cpu", (2,))
    if layers:
        for module in (net.trunk[0], net.trunk[2], *net.heads):
            fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def main(rank: int, folder: str) -> None:
    """Run every case, results to ``CASE-LAYERS-RANK.pt``."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meet = (Path(folder) / "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    half = ddp_worker.BATCH // 2
    rows = slice(rank * half, (rank + 1) * half)
    try:
        for number, (method, options) in enumerate(CASES):
            for layers in (False, True):
                balancer = Balancer(method, hooked=True, **options)
                found = ddp_worker.run(network(layers), balancer, rows, steps=3)
                found["grads"] = [g.full_tensor() for g in found["grads"]]
                torch.save(found, Path(folder) / f"{number}-{layers}-{rank}.pt")
    finally:
        dist.destroy_process_group()
