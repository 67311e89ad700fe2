"""The Balancer: sparse gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkmtl import Balancer


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-auto", "nash-mtl", "mgda"])
@pytest.mark.parametrize("where", ["trunk", "head"])
def test_sparse_gradients_stay_sparse(method: str, where: str) -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(10, 4, sparse=sparse).double()
        trunk, own = nn.Linear(4, 4).double(), nn.Linear(4, 1).double()
        heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2)).double()
        rows = table(torch.arange(6) // 2)
        z = trunk(rows if where == "trunk" else torch.ones(6, 4).double()).tanh()
        losses = [(head(z) - i).square().mean() for i, head in enumerate(heads)]
        if where == "head":
            losses[1] = losses[1] + (own(z * rows) - 3).square().mean()
        out = Balancer(method, minibatches=1, weight_heads=True).backward(losses)
        grad = table.weight.grad
        assert grad is not None
        assert grad.is_sparse == sparse
        found.append((out.weights, grad.to_dense(), trunk.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
