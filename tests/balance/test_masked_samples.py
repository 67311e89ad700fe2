"""Mini-batches of losses of single samples: masks, and batches of different sizes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.kernel._partition import minibatch_sizes


class Case:
    """Two tasks, with batches of their own where their sizes differ."""

    def __init__(self, sizes: tuple[int, int], *, masked: bool) -> None:
        torch.manual_seed(3)
        trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh()).double()
        heads = [nn.Linear(8, 1).double() for _ in range(2)]
        batches = [torch.randn(size, 5).double() for size in dict.fromkeys(sizes)]
        self.z = [trunk(x) for x in batches] * (1 if len(batches) == 2 else 2)
        self.parameters = list(trunk.parameters())
        self.values = [
            (head(z) - 2.0 * i).square()[:, 0]
            for i, (head, z) in enumerate(zip(heads, self.z, strict=True))
        ]
        self.masks = [torch.rand(size) < (0.6 if masked else 2.0) for size in sizes]
        self.losses = list(zip(self.values, self.masks, strict=True)) if masked else self.values

    def eigenvalues(self, n: int, source: str) -> Tensor:
        """From the gradient of each mini-batch's mean loss."""
        found = []
        for values, mask, z in zip(self.values, self.masks, self.z, strict=True):
            rows, over = [], self.parameters if source == "exact" else [z]
            sizes = minibatch_sizes(len(values), n)
            for part, own in zip(values.split(sizes), mask.split(sizes), strict=True):
                mean = (part * own).sum() / own.sum().clamp_min(1)
                gradients = torch.autograd.grad(mean, over, retain_graph=True)
                rows.append(torch.cat([g.reshape(-1) for g in gradients]))
            found.append(torch.linalg.eigvalsh(torch.stack(rows) @ torch.stack(rows).T)[-1])
        return torch.stack(found)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(13, 13), (7, 12)])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr"])
def test_rows_are_gradients_of_the_means_over_labels(
    method: str, named: bool, sizes: tuple[int, int], masked: bool, n: int
) -> None:
    case = Case(sizes, masked=masked)
    balancer = Balancer(method, minibatches=n)
    expected = case.eigenvalues(n, balancer.source)
    features = None
    if named:
        features = case.z[0] if case.z[0] is case.z[1] else case.z
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = balancer.backward(case.losses, features=features)
    torch.testing.assert_close(out.eigenvalues.double(), expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("size", [5, 9])
def test_a_task_that_shares_nothing_may_have_a_batch_of_its_own(size: int, named: bool) -> None:
    case = Case((12, 12), masked=True)
    expected = case.eigenvalues(4, "representation")
    other = nn.Linear(3, 1).double()
    values = other(torch.randn(size, 3).double()).square()[:, 0]
    losses = [*case.losses, (values, torch.arange(size) > 0)]
    out = Balancer("ntkmtl-sr").backward(losses, case.z[0] if named else None)
    assert out.weights[2] == 1.0
    torch.testing.assert_close(out.eigenvalues[:2].double(), expected, rtol=1e-9, atol=0.0)


def test_rows_of_one_tensor_for_each_task_do_not_tell_its_samples() -> None:
    case = Case((12, 12), masked=False)
    with pytest.warns(UserWarning, match=r"losses of \[12, 7\] samples do not show"):
        out = Balancer("ntkmtl-sr").backward([case.values[0], case.values[1][:7]])
    assert out.kernel.minibatches == 1


@pytest.mark.parametrize(
    ("features", "options", "words"),
    [
        (True, {"counts": torch.ones(2, 12)}, "counts is for losses that are means over labels"),
        (False, {"counts": torch.ones(2, 12)}, "counts is for losses that are means over labels"),
        (False, {"batch_dim": 1}, r"batch_dim=1 of a tensor of the cut.* the 12 samples"),
        (True, {"batch_dim": 1}, "tells of 12 samples, and the features hold 8 along dimension 1"),
    ],
)
def test_what_contradicts_losses_of_single_samples(
    features: bool, options: dict[str, Any], words: str
) -> None:
    case = Case((12, 12), masked=True)
    counts = options.pop("counts", None)
    balancer = Balancer("ntkmtl-sr", **options)
    with pytest.raises(ValueError, match=words):
        balancer.backward(case.losses, case.z[0] if features else None, counts=counts)
