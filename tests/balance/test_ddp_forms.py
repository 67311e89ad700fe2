"""Two processes under DDP, in all ways to wrap, feed and read a model, against plain autograd."""

from __future__ import annotations

import ddp_forms_worker as worker
import pytest
import torch
from ddp_forms_worker import FORMS, Form, Net
from torch import Tensor

import two_processes
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting import create

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of both processes, by the position of the form."""
    folder = tmp_path_factory.mktemp("forms")
    two_processes.run(worker.main, str(folder))
    return [
        [torch.load(folder / f"{number}-{rank}.pt", weights_only=True) for rank in range(2)]
        for number in range(len(FORMS))
    ]


def local(net: Net, form: Form, part: int) -> list[tuple[Tensor, list[Tensor | None]]]:
    """Features and losses of each process's micro-batch, in one process."""
    found = []
    for rank in range(2):
        z, losses = net.losses(*worker.batch(form, rank, part), False)
        kept: list[Tensor | None] = list(losses)
        if form.missing is not None and rank == 1:
            kept[form.missing] = None
        found.append((z, kept))
    return found


def gradient(loss: Tensor | None, inputs: list[Tensor]) -> Tensor:
    if loss is None:
        return torch.cat([torch.zeros_like(p).flatten() for p in inputs])
    grads = torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def expected_weights(form: Form, net: Net, batches: list) -> Tensor:
    """Weights from kernels that are made a loss at a time."""
    if form.method == "ls":
        return torch.ones(worker.TASKS, dtype=torch.float64)
    free = form.method in ("ntkmtl-sr", "fairgrad")
    trunk = list(net.trunk.parameters())
    rows = [  # process, task
        [gradient(loss, [z] if free else trunk) for loss in losses] for z, losses in batches
    ]
    if form.method.startswith("ntkmtl"):
        # Each process's batch is one mini-batch: Eq. 15 and 18 with n = 2. Rows of the
        # representation lie at different samples, so that their products are zero.
        pairs = list(zip(*rows, strict=True))
        norms = torch.stack([torch.stack([g.square().sum() for g in pair]) for pair in pairs])
        blocks = torch.diag_embed(norms)
        if not free:
            blocks = torch.stack([torch.stack(list(pair)) for pair in pairs])
            blocks = blocks @ blocks.mT
        eigenvalues = torch.linalg.eigvalsh(blocks)[:, -1]
        return (eigenvalues.mean() / eigenvalues).sqrt()
    labeled = torch.tensor([[loss is not None for loss in losses] for _, losses in batches])
    share = labeled / labeled.sum(dim=0)
    means = [torch.stack(own) * row[:, None] for row, own in zip(share, rows, strict=True)]
    gramian = sum(m @ m.T for m in means) if free else sum(means) @ sum(means).T
    return create(form.method)(ExtendedNTK(gramian[:, None, :, None]))


def replay(form: Form, weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Train in one process by the weights that were found; return those expected, and the end."""
    net = Net(lambda module: module, form.model)
    optimizer = torch.optim.SGD(net.parameters(), lr=worker.RATE)
    expected = []
    rest = iter(weights)
    for _ in range(worker.STEPS):
        optimizer.zero_grad()
        for part in range(form.micro):
            batches = local(net, form, part)
            expected.append(expected_weights(form, net, batches))
            taken = next(rest)
            total = [
                w * loss
                for _, losses in batches
                for w, loss in zip(taken, losses, strict=True)
                if loss is not None
            ]
            (torch.stack(total).sum() / 2).backward()
        optimizer.step()
    return expected, [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("number", range(len(FORMS)), ids=[str(form) for form in FORMS])
def test_two_processes(results, number):
    form, (first, second) = FORMS[number], results[number]
    if form.error:
        assert form.error in first["error"]
        assert first["error"] == second["error"]
        return
    assert "error" not in first, first["error"]
    assert torch.equal(first["weights"], second["weights"])
    for p, q in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(p, q)
    expected, parameters = replay(form, first["weights"])
    for p, q in zip(first["parameters"], parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    stateless = form.method not in ("ntkmtl-auto", "nash-mtl")
    for found, right in list(zip(first["weights"], expected, strict=True))[
        : None if stateless else 1
    ]:
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-12)
