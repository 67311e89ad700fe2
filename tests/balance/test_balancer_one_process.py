"""DistributedDataParallel in a group of one process, as `torchrun --nproc-per-node 1` makes it."""

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
@pytest.mark.parametrize("unused", [False, True], ids=["plain", "find-unused"])
@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-sr", "nash-mtl"])
def test_two_steps_are_those_without_ddp(method: str, unused: bool) -> None:
    case, plain = make_case(), make_case()
    net = nn.parallel.DistributedDataParallel(Net(case), find_unused_parameters=unused)
    alone = Net(plain)
    parallel, single = (Balancer(method, weight_heads=True) for _ in range(2))
    for _ in range(2):
        z, outputs = net(*case.inputs)
        if unused:
            # DDP then hands out copies, made from the outputs as they are from z.
            z = net.module.inner
        out = parallel.backward(losses_of(outputs), features=z)
        z, outputs = alone(*plain.inputs)
        expected = single.backward(losses_of(outputs), features=z)
        torch.testing.assert_close(out.weights, expected.weights, **EXACT)
        for p, q in zip(case.parameters, plain.parameters, strict=True):
            torch.testing.assert_close(p.grad, q.grad, **EXACT)
            p.grad = q.grad = None


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "nash-mtl"])
def test_copies_that_ddp_makes_of_features_are_not_taken_for_features(method: str) -> None:
    # No loss is made from the copy: its gradient is zero, and all weights would be 1.
    case = make_case()
    net = nn.parallel.DistributedDataParallel(Net(case), find_unused_parameters=True)
    z, outputs = net(*case.inputs)
    with pytest.raises(ValueError, match="no loss depends on the features"):
        Balancer(method).backward(losses_of(outputs), features=z)
    assert all(p.grad is None for p in case.parameters)
