"""Random shapes, scales and missing labels for every method, drawn by Hypothesis."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ntkmtl import Balancer, branch
from ntkmtl.weighting import accepted_options, create, names, spec

METHODS = [name for name in names() if name != "stl"]
SEEDED = {name for name in METHODS if "seed" in accepted_options(name)}
# Their gradients are not a weighted sum of the tasks' gradients, or not for the heads.
ENTRIES = {name for name in METHODS if spec(name).requires == "jacobian"}
# Solved to a tolerance of its own, on numbers that the scale changes.
ROUGH = {"cagrad": 1e-3}


@st.composite
def batches(draw: st.DrawFn) -> dict[str, object]:
    tasks = draw(st.integers(1, 5))
    samples = draw(st.integers(2, 9))
    present = draw(st.lists(st.booleans(), min_size=tasks, max_size=tasks).filter(any))
    scales = draw(st.lists(st.integers(-12, 12), min_size=tasks, max_size=tasks))
    return {
        "samples": samples,
        "minibatches": draw(st.integers(2, samples)),
        "width": draw(st.integers(1, 4)),
        "depth": draw(st.integers(0, 2)),
        "present": present,
        "scales": scales,
        "views": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


class Net:
    def __init__(self, drawn: dict[str, object], keep: list[int]) -> None:
        torch.manual_seed(drawn["seed"])
        width, tasks = drawn["width"], len(drawn["present"])
        layers: list[nn.Module] = [nn.Linear(3, width)]
        for _ in range(drawn["depth"]):
            layers += [nn.Tanh(), nn.Linear(width, width)]
        self.trunk = nn.Sequential(*layers).double()
        heads = [nn.Linear(width, 1).double() for _ in range(tasks)]
        x = torch.randn(drawn["samples"], 3).double()
        y = [torch.randn(drawn["samples"], 1).double() for _ in range(tasks)]
        self.heads = nn.ModuleList([heads[i] for i in keep])
        self.z = self.trunk(x)
        views = branch(self.z, len(keep)) if drawn["views"] else [self.z] * len(keep)
        self.features = views if drawn["views"] else self.z
        self.losses: list[Tensor | None] = [
            10.0 ** drawn["scales"][i] * (head(view) - y[i]).square().mean()
            for i, head, view in zip(keep, self.heads, views, strict=True)
        ]


def balancer(method: str, drawn: dict[str, object], tasks: int) -> Balancer:
    options = {"seed": 0} if method in SEEDED else {}
    if spec(method).requires != "losses":
        options |= {"minibatches": drawn["minibatches"], "weight_heads": True}
    return Balancer(method, tasks=tasks, **options)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(drawn=batches())
def test_any_batch(method: str, drawn: dict[str, object]) -> None:
    tasks = len(drawn["present"])
    there = [i for i in range(tasks) if drawn["present"][i]]
    net = Net(drawn, list(range(tasks)))
    losses = [
        loss if present else None
        for loss, present in zip(net.losses, drawn["present"], strict=True)
    ]
    out = balancer(method, drawn, tasks).backward(losses, features=net.features)
    assert out.weights.shape == (tasks,)
    assert bool(out.weights.isfinite().all())
    for i, head in enumerate(net.heads):
        if i not in there:
            assert out.weights[i] == 0.0
            assert all(p.grad is None for p in head.parameters())
    if method not in ENTRIES:
        fresh = Net(drawn, list(range(tasks)))
        total = sum(out.weights[i] * fresh.losses[i] for i in there)
        expected = torch.autograd.grad(total, list(fresh.trunk.parameters()))
        size = max(float(g.abs().max()) for g in expected)
        for p, g in zip(net.trunk.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-9 * size)
    # Those without labels might as well not exist.
    if method in SEEDED or create(method).has_head_objective:
        return
    alone = Net(drawn, there)
    kept = balancer(method, drawn, len(there)).backward(alone.losses, features=alone.features)
    rough = ROUGH.get(method, 1e-9)
    peak = float(kept.weights.abs().max())
    assert math.isfinite(peak)
    torch.testing.assert_close(out.weights[there], kept.weights, rtol=rough, atol=rough * peak)
