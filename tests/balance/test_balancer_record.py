"""A recorder receives the kernel of a step, and does not change the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, branch
from ntkmtl.analysis import Recorder, Snapshot
from ntkmtl.kernel import extended_ntk

EXACT = {"rtol": 1e-9, "atol": 0.0}


class _Keeps:
    """Keeps whole snapshots, where the real recorder keeps summaries."""

    def __init__(self, every: int = 1, **settings: Any) -> None:
        self.every = every
        self.source = settings.get("source")
        self.minibatches = settings.get("minibatches")
        self.pooling = settings.get("pooling")
        self.seen: list[Snapshot] = []

    def wants(self, step: int) -> bool:
        return step % self.every == 0

    def __call__(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot)


def _train(record: Any, method: str, steps: int = 3, views: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
    heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3)).double()
    parameters = [*trunk.parameters(), *heads.parameters()]
    balancer = Balancer(method, record=record, **options)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    kernels = []
    for _ in range(steps):
        x, y = torch.randn(6, 3).double(), torch.randn(3, 6, 1).double()
        z = trunk(x)
        read = branch(z, 3) if views else [z] * 3
        losses: list[Tensor] = [
            (head(own) - t).square().mean() for head, own, t in zip(heads, read, y, strict=True)
        ]
        kernels.append(
            (
                extended_ntk(losses, features=z, minibatches=2),
                extended_ntk(losses, features=z, parameters=trunk.parameters(), minibatches=2),
            )
        )
        optimizer.zero_grad()
        balancer.backward(losses, features=read if views else z)
        optimizer.step()
    return [p.detach().clone() for p in parameters], kernels


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ntkmtl-sr", {"minibatches": 2}),
        ("ntkmtl-sr", {"minibatches": 2, "every": 2}),
        ("ntkmtl", {"minibatches": 2}),
        ("ls", {}),
        ("rlw", {"seed": 0}),
        ("graddrop", {"seed": 0}),
        ("fairgrad", {}),
    ],
)
def test_training_is_the_same_and_the_kernel_is_right(
    method: str, options: dict[str, Any], views: bool
) -> None:
    plain, kernels = _train(None, method, views=views, **options)
    for source in ("representation", "exact"):
        record = _Keeps(source=source, minibatches=2, pooling="pooled")
        recorded, _ = _train(record, method, views=views, **options)
        assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
        assert [snapshot.step for snapshot in record.seen] == [0, 1, 2]
        for snapshot, (features, exact) in zip(record.seen, kernels, strict=True):
            expected = features if source == "representation" else exact
            assert snapshot.kernel is not None
            torch.testing.assert_close(snapshot.kernel.values, expected.values, **EXACT)
            assert snapshot.tasks == ("0", "1", "2")
            assert snapshot.present == (0, 1, 2)


@pytest.mark.parametrize(
    ("source", "separate"), [("auto", False), ("auto", True), ("probe", False)]
)
def test_without_a_source_all_steps_are_of_one_kind(source: str, separate: bool) -> None:
    """A Balancer that reads exact kernels now and then, and one that corrects by probes."""
    torch.manual_seed(0)
    trunk = nn.Linear(3, 5).double()
    heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(2)).double()
    record = _Keeps()
    options = {"trunk": trunk} if source == "probe" else {}
    balancer = Balancer("ntkmtl", source=source, minibatches=2, record=record, **options)
    x = torch.randn(6, 3).double()
    for step in range(2):
        z = trunk(x)
        read = [z * 1, z * 1] if separate else [z, z]
        features = read if separate else z
        losses = [head(own).square().mean() for head, own in zip(heads, read, strict=True)]
        expected = extended_ntk(losses, features=features, minibatches=2, pooling="blockwise")
        balancer.backward(losses, features=features)
        found = record.seen[step].kernel
        assert found is not None
        torch.testing.assert_close(found.blocks, expected.blocks, **EXACT)


def test_counts_that_do_not_fit_are_named() -> None:
    trunk, head = nn.Linear(3, 4), nn.Linear(4, 1)
    z = trunk(torch.randn(5, 3))
    losses = [head(z).square().mean(), z.square().mean()]
    balancer = Balancer("ls", record=_Keeps())
    with pytest.raises(ValueError, match=r"counts must have shape \(2, 5\)"):
        balancer.backward(losses, features=z, counts=torch.ones(2, 4))


def test_only_the_steps_that_it_wants() -> None:
    record = _Keeps(every=2)
    _train(record, "ntkmtl-sr", steps=5, minibatches=2)
    assert [snapshot.step for snapshot in record.seen] == [0, 2, 4]


def test_tasks_without_labels_and_a_gradient_scale() -> None:
    kernels = []
    for scale in (1.0, 64.0):
        torch.manual_seed(0)
        trunk, head = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
        record = _Keeps(source="exact")
        z = trunk(torch.randn(5, 3).double())
        losses = [head(z).square().mean(), None, z.square().mean()]
        out = Balancer("ls", record=record).backward(losses, features=z, scale=scale)
        (snapshot,) = record.seen
        assert snapshot.present == (0, 2)
        assert snapshot.losses.tolist() == [losses[0].item(), losses[2].item()]
        assert snapshot.weights.tolist() == out.weights.tolist() == [1.0, 0.0, 1.0]
        kernels.append(snapshot.kernel.values)
    torch.testing.assert_close(*kernels, **EXACT)


@pytest.mark.parametrize("source", ["exact", "representation"])
def test_steps_that_a_scaler_skips_are_recorded_without_a_kernel(source: str) -> None:
    torch.manual_seed(0)
    trunk, head = nn.Linear(3, 4), nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    recorder = Recorder(every=1, source=source)
    balancer = Balancer("ls", record=recorder)
    for _ in range(4):
        optimizer.zero_grad()
        z = trunk(torch.ones(5, 3))
        losses = [(1e4 * z - 9).square().mean(), (1e4 * head(z) - 9).square().mean()]
        balancer.backward(losses, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() < 2.0**126
    assert len(recorder) == 4
    assert bool(recorder["max_eigenvalues"][0].isnan().all())


def test_samples_that_cannot_be_told_are_recorded_as_one_minibatch() -> None:
    trunk, head = nn.Linear(3, 4), nn.Linear(4, 1)
    record = _Keeps()
    z = trunk(torch.randn(6, 3))
    losses = [head(z).square()[:, 0], z[:5].square().mean(dim=1)]
    with pytest.warns(UserWarning, match="do not show which dimension"):
        Balancer("ntkmtl-sr", record=record).backward(losses)
    assert record.seen[0].kernel.minibatches == 1


def test_without_features_the_shared_parameters_do() -> None:
    trunk, head = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
    shared = list(trunk.parameters())
    record = _Keeps()
    z = trunk(torch.randn(5, 3).double())
    losses = [head(z).square().mean(), z.square().mean()]
    expected = extended_ntk(losses, parameters=shared)
    Balancer("ls", record=record, shared=shared).backward(losses)
    torch.testing.assert_close(record.seen[0].kernel.values, expected.values, **EXACT)
    z = trunk(torch.randn(5, 3).double())
    unknown = _Keeps()
    Balancer("ls", record=unknown).backward([z.square().mean()])
    assert unknown.seen[0].kernel is None


@pytest.mark.parametrize("method", ["ntkmtl", "ls"])
def test_heads_below_one_activation_are_not_recorded_as_shared(method: str) -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 5).double(), [nn.Linear(5, 1).double() for _ in range(3)]
    z = trunk(torch.randn(6, 3).double())
    outputs = torch.cat([head(z) for head in heads], 1).sigmoid()
    losses = list((outputs - torch.arange(3)).square().mean(0))
    shared = [trunk.weight, trunk.bias]
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, shared, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    recorder = _Keeps(source="exact")
    Balancer(method, record=recorder).backward(losses)
    kernel = recorder.seen[0].kernel
    assert kernel is not None
    torch.testing.assert_close(kernel.gramian(), torch.stack(rows) @ torch.stack(rows).T, **EXACT)
