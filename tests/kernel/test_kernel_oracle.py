"""Every source of the kernel equals the kernel of a Jacobian that is built row by row."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kernel import oracle
from kernel.oracle import EXACT, TRUNKS, make_case
from ntkmtl import Balancer, branch, extended_ntk
from placement import DTYPE

POOLINGS = ["pooled", "blockwise", "kernel"]
MINIBATCHES = [1, 2, 3, 4]


@pytest.mark.parametrize("n", MINIBATCHES)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_representation(trunk: str, pooling: str, n: int) -> None:
    case = make_case(trunk)
    z = case.features()
    per_sample = case.per_sample(z)
    expected = oracle.representation(
        per_sample, [z], oracle.sizes(oracle.BATCH, n), pooling, case.batch_dim
    )
    kernel = extended_ntk(
        [row.mean() for row in per_sample],
        features=z,
        minibatches=n,
        pooling=pooling,
        batch_dim=case.batch_dim,
    )
    torch.testing.assert_close(kernel.values, expected, **EXACT)


@pytest.mark.parametrize("n", MINIBATCHES)
@pytest.mark.parametrize("through_features", [True, False])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_exact(trunk: str, through_features: bool, n: int) -> None:
    case = make_case(trunk)
    z = case.features()
    per_sample = case.per_sample(z)
    expected = oracle.exact(per_sample, case.shared, oracle.sizes(oracle.BATCH, n))
    if through_features:
        losses = [row.mean() for row in per_sample]
        kernel = extended_ntk(
            losses, z, case.trunk.parameters(), minibatches=n, batch_dim=case.batch_dim
        )
    else:
        kernel = extended_ntk(list(per_sample), parameters=case.shared, minibatches=n)
    torch.testing.assert_close(kernel.values, expected, **EXACT)


@pytest.mark.parametrize("source", ["representation", "exact"])
def test_no_grad_changes(source: str) -> None:
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    parameters = case.shared if source == "exact" else None
    extended_ntk(losses, z, parameters, minibatches=2)
    assert all(p.grad is None for p in case.parameters)
    sum(losses).backward()  # the graph is still there


@pytest.mark.parametrize("source", ["representation", "exact"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_balancer_finds_the_same_kernel(trunk: str, source: str, n: int) -> None:
    case = make_case(trunk)
    z = case.features()
    per_sample = case.per_sample(z)
    split = oracle.sizes(oracle.BATCH, n)
    if source == "exact":
        expected = oracle.exact(per_sample, case.shared, split)
    else:
        expected = oracle.representation(per_sample, [z], split, "blockwise", case.batch_dim)
    balancer = Balancer("ntkmtl", source=source, minibatches=n, batch_dim=case.batch_dim)
    out = balancer.backward([row.mean() for row in per_sample], features=z)
    assert out.kernel is not None
    diagonal = torch.stack([expected[i, :, i, :] for i in range(len(expected))])
    torch.testing.assert_close(out.kernel.blocks, diagonal, **EXACT)
    largest = torch.linalg.eigvalsh(diagonal)[:, -1]
    torch.testing.assert_close(out.eigenvalues, largest, **EXACT)


class TwoScales(nn.Module):
    """Two representations that do not lie below each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.coarse, self.fine = nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(self.stem(x))
        return self.coarse(h), torch.tanh(self.fine(h))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("source", [*POOLINGS, "exact"])
def test_tuple_of_features_counts_as_one_long_tensor(source: str, n: int) -> None:
    case = make_case()
    trunk = TwoScales().to(DTYPE)
    scales = trunk(*case.inputs)
    per_sample = case.per_sample(torch.cat(scales, dim=1))
    split = oracle.sizes(oracle.BATCH, n)
    losses = [row.mean() for row in per_sample]
    if source == "exact":
        expected = oracle.exact(per_sample, trunk.parameters(), split)
        kernel = extended_ntk(losses, scales, trunk.parameters(), minibatches=n)
    else:
        expected = oracle.representation(per_sample, scales, split, source)
        kernel = extended_ntk(losses, scales, minibatches=n, pooling=source)
    torch.testing.assert_close(kernel.values, expected, **EXACT)


class OnePerTask(nn.Module):
    """A representation per task, as attention networks have; widths may differ."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.own = nn.ModuleList([nn.Linear(6, width) for width in widths])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        h = torch.tanh(self.stem(x))
        return [torch.tanh(layer(h)) for layer in self.own]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize("widths", [[5, 5, 5], [2, 5, 3]])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_one_representation_per_task_has_diagonal_blocks(
    pooling: str, widths: list[int], form: str, n: int
) -> None:
    case = make_case()
    case.heads = nn.ModuleList([oracle.Head(width) for width in widths]).to(DTYPE)
    trunk = OnePerTask(widths).to(DTYPE)
    own = trunk(*case.inputs)
    per_sample = case.per_sample(own)
    split = oracle.sizes(oracle.BATCH, n)
    names = ["a", "b", "c"]
    losses = case.losses(own)
    if form == "list":
        kernel = extended_ntk(losses, own, minibatches=n, pooling=pooling)
    else:
        kernel = extended_ntk(
            dict(zip(names, losses, strict=True)),
            # By name, whatever the order.
            {name: own[i] for i, name in reversed(list(enumerate(names)))},
            minibatches=n,
            pooling=pooling,
        )
    assert not kernel.has_all_blocks
    for i, z in enumerate(own):
        expected = oracle.representation(per_sample[i : i + 1], [z], split, pooling)
        torch.testing.assert_close(kernel.block(i, i), expected[0, :, 0, :], **EXACT)


def test_exact_kernel_of_one_representation_per_task_has_all_blocks() -> None:
    case = make_case()
    trunk = OnePerTask([5, 5, 5]).to(DTYPE)
    own = trunk(*case.inputs)
    per_sample = case.per_sample(own)
    expected = oracle.exact(per_sample, trunk.parameters(), oracle.sizes(oracle.BATCH, 2))
    kernel = extended_ntk(case.losses(own), own, trunk.parameters(), minibatches=2)
    torch.testing.assert_close(kernel.values, expected, **EXACT)


@pytest.mark.parametrize("how", ["chunk", "unbind"])
@pytest.mark.parametrize("n", [1, 2])
def test_representations_per_task_may_come_from_one_operation(how: str, n: int) -> None:
    case = make_case()
    z = nn.Linear(4, 15).to(DTYPE)(*case.inputs)
    own = list(z.chunk(3, dim=1)) if how == "chunk" else list(z.view(-1, 3, 5).unbind(1))
    per_sample = case.per_sample(own)
    split = oracle.sizes(oracle.BATCH, n)
    kernel = extended_ntk(case.losses(own), own, minibatches=n, pooling="blockwise")
    for i, mine in enumerate(own):
        expected = oracle.representation(per_sample[i : i + 1], [mine], split, "blockwise")
        torch.testing.assert_close(kernel.block(i, i), expected[0, :, 0, :], **EXACT)
    out = Balancer("ntkmtl-sr", minibatches=n).backward(case.losses(own), features=own)
    torch.testing.assert_close(out.eigenvalues, kernel.max_eigenvalues(), **EXACT)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("source", [*POOLINGS, "exact"])
def test_branches_give_the_kernel_of_their_root(source: str, n: int) -> None:
    case = make_case()
    z = case.features()
    views = branch(z, oracle.TASKS)
    parameters = case.shared if source == "exact" else None
    pooling = "pooled" if source == "exact" else source
    kernel = extended_ntk(case.losses(views), views, parameters, minibatches=n, pooling=pooling)
    direct = extended_ntk(case.losses(z), z, parameters, minibatches=n, pooling=pooling)
    torch.testing.assert_close(kernel.values, direct.values, **EXACT)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("source", [*POOLINGS, "exact"])
def test_counts_make_minibatch_means_over_labels(source: str, n: int) -> None:
    case = make_case()
    z = case.features()
    # Labels (pixels, say) per task and sample; the last mini-batch of task 1 has none at all.
    counts = torch.randint(1, 5, (oracle.TASKS, oracle.BATCH)).double()
    counts[0, 2] = 0
    counts[1, 5:] = 0
    sums = case.per_sample(z) * counts
    losses = [row.sum() / own.sum() for row, own in zip(sums, counts, strict=True)]
    split = oracle.sizes(oracle.BATCH, n)
    if source == "exact":
        expected = oracle.exact(sums, case.shared, split, counts)
        kernel = extended_ntk(losses, z, case.shared, minibatches=n, counts=counts)
    else:
        expected = oracle.representation(sums, [z], split, source, counts=counts)
        kernel = extended_ntk(losses, z, minibatches=n, counts=counts, pooling=source)
    torch.testing.assert_close(kernel.values, expected, **EXACT)
    gramian = oracle.products([[oracle.flat_gradient(loss, case.shared)] for loss in losses])
    if source == "exact":
        torch.testing.assert_close(kernel.gramian(), gramian[:, 0, :, 0], **EXACT)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("source", ["representation", "exact"])
def test_balancer_counts(source: str, n: int) -> None:
    case = make_case()
    z = case.features()
    counts = torch.randint(1, 5, (oracle.TASKS, oracle.BATCH))
    sums = case.per_sample(z) * counts
    losses = [row.sum() / own.sum() for row, own in zip(sums, counts, strict=True)]
    split = oracle.sizes(oracle.BATCH, n)
    if source == "exact":
        expected = oracle.exact(sums, case.shared, split, counts)
    else:
        expected = oracle.representation(sums, [z], split, "blockwise", counts=counts)
    out = Balancer("ntkmtl", source=source, minibatches=n).backward(losses, z, counts=counts)
    assert out.kernel is not None
    for i in range(oracle.TASKS):
        torch.testing.assert_close(out.kernel.block(i, i), expected[i, :, i, :], **EXACT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", MINIBATCHES)
@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh, nn.ReLU])
def test_last_layer_kernel_is_exact_in_that_layer(
    activation: type[nn.Module], n: int, bias: bool
) -> None:
    case = make_case()
    last = nn.Linear(6, 5, bias=bias).to(DTYPE)
    case.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), last, activation()).to(DTYPE)
    balancer = Balancer("ntkmtl-tk", minibatches=n, last_layer=last)
    z = case.features()
    per_sample = case.per_sample(z)
    # Naive: each sample's gradient with respect to weight and bias, summed by mini-batch.
    samples = [
        [oracle.flat_gradient(loss, last.parameters()) for loss in row] for row in per_sample
    ]
    windows = oracle.windows(oracle.sizes(oracle.BATCH, n))
    rows = [[sum(row[s] for s in w) / len(w) for w in windows] for row in samples]
    expected = oracle.products(rows)
    out = balancer.backward([row.mean() for row in per_sample], features=z)
    assert out.kernel is not None
    for i in range(oracle.TASKS):
        torch.testing.assert_close(out.kernel.block(i, i), expected[i, :, i, :], **EXACT)


def test_last_layer_errors() -> None:
    case = make_case()
    last = case.trunk[2]
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
        Balancer("ntkmtl-tk", last_layer=case.trunk[1])
    with pytest.raises(ValueError, match="kernel"):
        Balancer("ntkmtl-sr", last_layer=last)
    z = case.features()
    late = Balancer("ntkmtl-tk", last_layer=last)
    with pytest.raises(ValueError, match="has not run"):
        late.backward(case.losses(z), features=z)
    inplace = nn.Sequential(*case.trunk, nn.ReLU(inplace=True))
    balancer = Balancer("ntkmtl-tk", last_layer=last)
    z = inplace(*case.inputs)
    with pytest.raises(ValueError, match="in place"):
        balancer.backward(case.losses(z), features=z)


def test_last_layer_leaves_the_model_copyable() -> None:
    case = make_case()
    balancer = Balancer("ntkmtl-tk", last_layer=case.trunk[2], minibatches=2)
    z = case.features()
    balancer.backward(case.losses(z), features=z)
    copied = copy.deepcopy(case.trunk)  # as averages of weights are made
    torch.testing.assert_close(copied(*case.inputs), case.features())


@pytest.mark.parametrize("exponent", [-12, -6, 6, 12])
@pytest.mark.parametrize("source", [*POOLINGS, "exact"])
def test_float32_keeps_its_relative_accuracy_at_any_loss_scale(source: str, exponent: int) -> None:
    case = make_case()
    z = case.features()
    parameters = case.shared if source == "exact" else None
    pooling = "pooled" if source == "exact" else source
    reference = extended_ntk(case.losses(z), z, parameters, minibatches=3, pooling=pooling)
    case.trunk.float()
    case.heads.float()
    case.inputs = tuple(x.float() for x in case.inputs)
    case.targets = case.targets.float()
    z = case.features()
    # One task small, one large, one as it is.
    scales = torch.tensor([10.0**exponent, 1.0, 10.0**-exponent], dtype=torch.float64)
    losses = [loss * float(s) for loss, s in zip(case.losses(z), scales, strict=True)]
    parameters = case.shared if source == "exact" else None
    kernel = extended_ntk(losses, z, parameters, minibatches=3, pooling=pooling)
    assert kernel.values.dtype == torch.float64
    expected = reference.max_eigenvalues() * scales**2
    torch.testing.assert_close(kernel.max_eigenvalues(), expected, rtol=2e-5, atol=0.0)
    torch.testing.assert_close(kernel.affinity(), reference.affinity(), rtol=0.0, atol=2e-5)


@pytest.mark.skipif(torch.float64 != DTYPE, reason="beyond float32")
@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_float64_has_a_larger_range(scale: float) -> None:
    case = make_case()
    z = case.features()
    plain = extended_ntk(case.losses(z), z, minibatches=2).max_eigenvalues()
    scaled = extended_ntk([loss * scale for loss in case.losses(z)], z, minibatches=2)
    torch.testing.assert_close(scaled.max_eigenvalues() / scale**2, plain, **EXACT)
