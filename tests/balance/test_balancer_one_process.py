"""DDP in a group of one process, as started by ``torchrun --nproc-per-node 1``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kernel.oracle import EXACT, Case, make_case
from ntkmtl import Balancer


class Net(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.trunk, self.heads = case.trunk, case.heads
        self.inner: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(x)
        self.inner = z
        return z, [head(z) for head in self.heads]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def losses_of(outputs: list[Tensor]) -> list[Tensor]:
    return [scale * o.square().mean() for o, scale in zip(outputs, (1.0, 10.0, 0.1), strict=True)]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("named", ["inner", "returned", "none"])
@pytest.mark.parametrize("wrap", ["plain", "find_unused_parameters", "static_graph"])
@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-sr", "ntkmtl-auto", "nash-mtl"])
def test_two_steps_are_those_without_ddp(method: str, wrap: str, named: str) -> None:
    case, plain = make_case(), make_case()
    options = {} if wrap == "plain" else {wrap: True}
    net = nn.parallel.DistributedDataParallel(Net(case), **options)
    alone = Net(plain)
    parallel, single = (Balancer(method, minibatches=1, weight_heads=True) for _ in range(2))
    for _ in range(2):
        # Where parameters may be unused, and in a first step, DDP hands out copies.
        z, outputs = net(*case.inputs)
        features = {"inner": net.module.inner, "returned": z, "none": None}[named]
        out = parallel.backward(losses_of(outputs), features=features)
        z, outputs = alone(*plain.inputs)
        expected = single.backward(losses_of(outputs), features=None if named == "none" else z)
        torch.testing.assert_close(out.weights, expected.weights, **EXACT)
        for p, q in zip(case.parameters, plain.parameters, strict=True):
            torch.testing.assert_close(p.grad, q.grad, **EXACT)
            p.grad = q.grad = None
