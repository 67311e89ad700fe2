"""Difficult graphs: the right result by a slower way, or an error with an explanation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from graph.test_zoo import EXACT, assert_disconnected, flat_gradients, found_gradient
from graph.zoo import data, error, linear, weights
from ntkmtl import Balancer, BalanceResult
from ntkmtl.graph import find_cut

TASKS, BATCH = 3, 6


@dataclass
class Plain:
    """A trunk and three heads; y makes the losses of different sizes."""

    trunk: nn.Module
    heads: list[nn.Module]
    x: Tensor
    y: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.trunk.parameters(), *weights(*self.heads)]

    @property
    def shared(self) -> list[Tensor]:
        return list(self.trunk.parameters())

    def outputs(self, z: Tensor | None = None) -> list[Tensor]:
        z = self.trunk(self.x) if z is None else z
        return [head(z)[:, 0] for head in self.heads]

    def squares(self, z: Tensor | None = None) -> list[Tensor]:
        return [(o - t).square() for o, t in zip(self.outputs(z), self.y, strict=True)]

    def losses(self, z: Tensor | None = None) -> list[Tensor]:
        return [s.mean() for s in self.squares(z)]

    def of_features(self) -> Tensor:
        """Squared length of each loss's gradient with respect to the trunk's output."""
        z = self.trunk(self.x).detach().requires_grad_()
        return flat_gradients(self.losses(z), [z]).square().sum(1)

    def of_trunk(self) -> Tensor:
        return flat_gradients(self.losses(), self.shared).square().sum(1)


def plain(seed: int = 0) -> Plain:
    torch.manual_seed(seed)
    trunk = nn.Sequential(linear(4, 5), nn.Tanh())
    heads: list[nn.Module] = [linear(5, 1) for _ in range(TASKS)]
    return Plain(
        trunk, heads, data(BATCH, 4), data(TASKS, BATCH) * torch.tensor([[1.0], [9], [0.2]])
    )


def squared_lengths(out: BalanceResult) -> Tensor:
    """The diagonal of the kernel of one mini-batch."""
    return out.kernel.blocks[:, 0, 0]


def assert_gradient(
    net: Plain, losses: Callable[[Plain], list[Tensor]], found: Tensor, on: Tensor | None = None
) -> None:
    """Compare ``.grad`` with autograd's of the weighted sum, heads with other weights if given."""
    same = plain()
    total = found @ flat_gradients(losses(same), same.parameters)
    if on is not None:
        heads = on @ flat_gradients(losses(same), weights(*same.heads))
        total = torch.cat([found @ flat_gradients(losses(same), same.shared), heads])
    torch.testing.assert_close(found_gradient(net.parameters), total, **EXACT)


# ------------------------------------------------------------------ losses from one vector

EYE = torch.eye(TASKS, dtype=torch.float64)
VECTORS: dict[str, Callable[[Plain], list[Tensor]]] = {
    "indexed": lambda n: _indexed(torch.stack(n.squares(), 1).mean(0)),
    "indexed from the end": lambda n: _from_the_end(torch.stack(n.losses())),
    "stacked": lambda n: list(torch.stack(n.losses())),
    "unbound": lambda n: list(torch.stack(n.losses()).unbind()),
    "unbound last dimension": lambda n: [c.mean() for c in torch.stack(n.squares(), -1).unbind(-1)],
    "chunks": lambda n: [c.mean() for c in torch.stack(n.squares(), -1).chunk(TASKS, -1)],
    "split": lambda n: [c.mean() for c in torch.stack(n.squares(), 1).split([1, 1, 1], dim=1)],
    "column means": lambda n: _columns(torch.stack(n.squares(), 1)),
    "columns by ellipsis": lambda n: _columns(torch.stack(n.squares(), -1), last=True),
    "narrow": lambda n: _narrow(torch.stack(n.squares(), -1)),
    "matrix of tasks": lambda n: _rows(torch.stack(n.squares())),
    "matrix of tasks, kept dimension": lambda n: list(
        torch.stack(n.squares()).mean(1, keepdim=True)[:, 0]
    ),
    "stack times constants": lambda n: _scaled(n, lambda v: v * torch.ones(TASKS)),
    "sum of two stacks": lambda n: _doubled(n.losses()),
    "several entries": lambda n: _several(torch.stack([p for q in n.squares() for p in q]) * 0.5),
    "joined with a constant": lambda n: list(
        torch.cat([torch.stack(n.losses()), torch.ones(2, dtype=torch.float64)])[:TASKS]
    ),
    "transposed once": lambda n: [c.mean() for c in torch.stack(n.squares()).t().unbind(1)],
    "transposed dimensions": lambda n: [
        c.mean() for c in torch.stack(n.squares()).transpose(-1, 0).unbind(1)
    ],
    "transposed": lambda n: [c.mean() for c in torch.stack(n.squares()).T.unbind(1)],
    "cat of outputs": lambda n: _outputs(n, torch.cat([o[:, None] for o in n.outputs()], 1)),
    "stack of outputs": lambda n: _outputs(n, torch.stack(n.outputs(), dim=-1)),
    "flipped": lambda n: list(torch.stack(n.losses()[::-1]).flip(0)),
    "nested stacks": lambda n: _nested(n.losses()),
    "slices of a flat vector": lambda n: [
        p.mean() for p in torch.cat(n.squares()).view(-1).split(BATCH)
    ],
}
# How each task takes its part of one matrix of errors, by operations of its own.
OWN_PARTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "some rows": lambda m, i: m[1:, i].mean(),
    "some rows, then reshaped": lambda m, i: m[2:].reshape(-1, TASKS)[:, i].mean(),
    "rows in three dimensions": lambda m, i: m.reshape(2, -1, TASKS).mean((0, 1))[i],
    "mean, then index": lambda m, i: m.mean(0)[i],
    "sum with a kept dimension": lambda m, i: m.sum(0, keepdim=True)[0, i],
    "scaled, then index": lambda m, i: (2 * m)[:, i].mean(),
    "transposed": lambda m, i: m.t()[i].mean(),
    "square root, then index": lambda m, i: m.sqrt()[:, i].mean(),
    "flipped rows": lambda m, i: m.flip(0)[:, i].sqrt().mean(),
    "flipped tasks": lambda m, i: m.flip(1)[:, i].sqrt().mean(),
    "rolled rows": lambda m, i: m.roll(2, 0)[:, i].sqrt().mean(),
    "gathered rows": lambda m, i: m.gather(0, torch.arange(9).view(3, 3) % 3)[:, i].mean(),
    "selected rows": lambda m, i: m.index_select(0, torch.tensor([4, 1]))[:, i].mean(),
    "sorted": lambda m, i: m.sort(0).values[:2, i].mean(),
    "largest": lambda m, i: m[:, i].topk(2).values.mean(),
    "maximum": lambda m, i: m.max(0).values[i],
    "amax": lambda m, i: m.amax(0, keepdim=True)[0, i],
    "cumulative": lambda m, i: m.cumsum(0)[:, i].mean(),
    "logsumexp": lambda m, i: m.logsumexp(0)[i],
    "norm": lambda m, i: torch.linalg.vector_norm(m, dim=0)[i],
    "norm of all": lambda m, i: m[:, i].norm(),
    "deviation": lambda m, i: m.std(0)[i],
    "median": lambda m, i: m[:, i].median(),
    "softplus": lambda m, i: nn.functional.softplus(m)[:, i].mean(),
}
# Which entries are whose cannot be told without reading values.
BLURRED: dict[str, Callable[[Plain], list[Tensor]]] = {
    "one-hot masks": lambda n: _masked(torch.stack(n.losses())),
    "one-hot product": lambda n: list(EYE @ torch.stack(n.losses())),
    "list of indices": lambda n: _picked(torch.stack(n.losses())),
    "boolean masks": lambda n: _where(torch.stack(n.losses())),
    "buffer": lambda n: _buffer(n),
}


def _indexed(vector: Tensor) -> list[Tensor]:
    return [vector[i] for i in range(TASKS)]


def _from_the_end(vector: Tensor) -> list[Tensor]:
    return [vector[i - TASKS] for i in range(TASKS)]


def _doubled(losses: list[Tensor]) -> list[Tensor]:
    return list(torch.stack(losses) * 0.25 + torch.stack([loss * 3 for loss in losses]) * 0.25)


def _several(vector: Tensor) -> list[Tensor]:
    """Each task's loss adds up entries of its own, taken one by one."""
    entries = [vector[i] for i in range(TASKS * BATCH)]
    return [sum(entries[i * BATCH : (i + 1) * BATCH]) * (2 / BATCH) for i in range(TASKS)]


def _nested(losses: list[Tensor]) -> list[Tensor]:
    return list(torch.cat([torch.stack(losses[:2]), losses[2][None]]))


def _where(vector: Tensor) -> list[Tensor]:
    return [vector[m][0] for m in EYE.bool()]


def _columns(matrix: Tensor, last: bool = False) -> list[Tensor]:
    return [(matrix[..., i] if last else matrix[:, i]).mean() for i in range(TASKS)]


def _narrow(matrix: Tensor) -> list[Tensor]:
    return [matrix.narrow(-1, i, 1).mean() for i in range(TASKS)]


def _rows(matrix: Tensor) -> list[Tensor]:
    return [matrix[i].mean() for i in range(TASKS)]


def _scaled(net: Plain, scale: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return list(scale(torch.stack(net.losses())))


def _outputs(net: Plain, matrix: Tensor) -> list[Tensor]:
    return [error(matrix[:, i], net.y[i]) for i in range(TASKS)]


def _masked(vector: Tensor) -> list[Tensor]:
    return [(vector * m).sum() for m in EYE]


def _picked(vector: Tensor) -> list[Tensor]:
    return [vector[[i]][0] for i in range(TASKS)]


def _buffer(net: Plain) -> list[Tensor]:
    buffer = torch.zeros(BATCH, TASKS, dtype=torch.float64)
    for i, o in enumerate(net.outputs()):
        buffer[:, i] = o
    return _outputs(net, buffer)


@pytest.mark.parametrize("name", list(VECTORS))
def test_elements_of_one_vector_are_assigned_to_their_tasks(name: str) -> None:
    make = VECTORS[name]
    net = plain()
    cut = find_cut(losses := make(net))
    assert cut.clean
    assert [node.name() for node, _ in cut.targets] == ["TanhBackward0"] * len(cut.targets)
    assert {id(p) for p in cut.shared} == {id(p) for p in net.shared}
    assert_disconnected(cut, losses)
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses)
    torch.testing.assert_close(out.eigenvalues, net.of_features(), **EXACT)
    assert_gradient(net, make, out.weights)


@pytest.mark.parametrize("name", list(OWN_PARTS))
def test_parts_are_followed_through_operations_of_one_task(name: str) -> None:
    net = plain()

    def losses(net: Plain, z: Tensor | None = None) -> list[Tensor]:
        matrix = torch.stack(net.squares(z), 1)
        return [OWN_PARTS[name](matrix, i) for i in range(TASKS)]

    cut = find_cut(losses(net))
    assert [node.name() for node, _ in cut.targets] == ["TanhBackward0"]
    assert {id(p) for p in cut.shared} == {id(p) for p in net.shared}
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses(net))
    z = net.trunk(net.x).detach().requires_grad_()
    expected = flat_gradients(losses(net, z), [z]).square().sum(1)
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)
    assert_gradient(net, losses, out.weights)


# Tensors of errors of single samples that are made by operations which are not followed.
OF_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda m: m.softmax(0),
    "product": lambda m: torch.eye(BATCH, dtype=torch.float64) @ m,
    "layer norm": lambda m: nn.functional.layer_norm(m.t(), (BATCH,)).t(),
}


@pytest.mark.parametrize("name", list(OF_LOSSES))
@pytest.mark.parametrize("end", [Tensor.mean, Tensor.amax])
def test_sums_of_a_tensor_s_own_entries_are_refused(
    name: str, end: Callable[[Tensor], Tensor]
) -> None:
    def losses(net: Plain) -> list[Tensor]:
        matrix = OF_LOSSES[name](torch.stack(net.squares(), 1))
        return [end(matrix[:, i]) for i in range(TASKS)]

    with pytest.raises(ValueError, match=r"holds losses, of shape \((6, 3|3, 6)\)"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses(plain()))
    out = Balancer("ntkmtl-auto").backward(losses(net := plain()))
    assert_gradient(net, losses, out.weights)


def test_sums_of_the_same_entries_are_a_representation() -> None:
    """One loss may be linear in the features, or all of them, if they read the same ones."""
    net = plain()
    z = net.trunk(net.x)
    out = Balancer("ntkmtl-sr", minibatches=1).backward([z.sum(), 3 * z.mean()])
    expected = flat_gradients([z.sum(), 3 * z.mean()], [z]).square().sum(1)
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)


@pytest.mark.parametrize("name", [*VECTORS, *BLURRED])
@pytest.mark.parametrize("weight_heads", [True, False])
def test_the_exact_kernel_of_parts_of_one_vector(name: str, weight_heads: bool) -> None:
    make = {**VECTORS, **BLURRED}[name]
    net = plain()
    out = Balancer("ntkmtl", weight_heads=weight_heads).backward(make(net))
    torch.testing.assert_close(out.eigenvalues, plain().of_trunk(), **EXACT)
    on_heads = None if weight_heads else torch.ones(TASKS, dtype=torch.float64)
    assert_gradient(net, make, out.weights, on_heads)


@pytest.mark.parametrize("name", list(BLURRED))
def test_a_vector_without_samples_is_never_the_representation(name: str) -> None:
    net = plain()
    cut = find_cut(BLURRED[name](net))
    for target in cut.targets:
        assert BATCH in target[0]._input_metadata[target[1]].shape
    auto = Balancer().backward(BLURRED[name](net))
    torch.testing.assert_close(auto.eigenvalues, plain().of_trunk(), **EXACT)


def test_a_matrix_mixes_losses() -> None:
    mix = torch.tensor([[1.0, 0.5, 0.0], [0.3, 1.0, 0.2], [0.0, 0.1, 1.0]], dtype=torch.float64)
    for multiply in (lambda v: mix.mv(v), lambda v: mix @ v, lambda v: (mix * v).sum(1)):
        net = plain()
        losses = list(multiply(torch.stack(net.losses())))
        everything = flat_gradients(losses, net.parameters)
        touched = (everything != 0).sum(0) > 1
        expected = (everything * touched).square().sum(1)
        out = Balancer("ntkmtl").backward(losses)
        torch.testing.assert_close(out.eigenvalues, expected, **EXACT)


def test_parts_of_activations_are_measured_where_they_are_made() -> None:
    # One task reads a part of a residual sum, the other all of it: both at the sum.
    torch.manual_seed(0)
    first, second = linear(4, 6), linear(6, 6)
    heads = [linear(2, 1), linear(6, 1)]
    a = first(data(BATCH, 4)).tanh()
    z = a + second(a).tanh()
    leaf = z.detach().requires_grad_()
    expected = flat_gradients(
        [heads[0](leaf[:, :2]).square().mean(), heads[1](leaf).square().mean()], [leaf]
    )
    out = Balancer("ntkmtl-sr", minibatches=1).backward(
        [heads[0](z[:, :2]).square().mean(), heads[1](z).square().mean()]
    )
    torch.testing.assert_close(out.eigenvalues, expected.square().sum(1), **EXACT)


def test_a_task_is_not_counted_below_its_own_border() -> None:
    # Two tasks read a tensor made of one half of z, a third task reads the other half.
    torch.manual_seed(0)
    trunk, body, heads = linear(4, 6), linear(3, 4), [linear(4, 1), linear(4, 1), linear(3, 1)]

    def losses() -> list[Tensor]:
        one, other = trunk(x).tanh().chunk(2, dim=-1)
        h = body(one).tanh()
        return [heads[0](h).mean(), heads[1](h).exp().mean(), heads[2](other).square().mean()]

    x = data(BATCH, 4)
    shared = flat_gradients(losses(), weights(trunk, body))
    out = Balancer("imtl-g").backward(losses())
    torch.testing.assert_close(out.kernel.gramian(), shared @ shared.T, **EXACT)


# Outputs of all heads are joined, and then an operation without parameters runs over all of them.
LABELS = torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)
JOINED: dict[str, Callable[[Plain], list[Tensor]]] = {
    "sigmoid": lambda n: _columns((_joined_outputs(n).sigmoid() - 3).square()),
    "softplus of columns": lambda n: _outputs(n, nn.functional.softplus(_joined_outputs(n))),
    "softmax over samples": lambda n: _columns(_joined_outputs(n).softmax(0).square()),
    "batch norm": lambda n: _columns(
        (nn.functional.batch_norm(_joined_outputs(n), None, None, training=True) - 1) ** 2
    ),
    "flipped losses": lambda n: list(torch.stack(n.losses()).flip(0)),
    "cross entropy of slices": lambda n: _entropies(_pairs(n).split(2, 1)),
    "cross entropy of views": lambda n: _entropies(_pairs(n).view(BATCH, TASKS, 2).unbind(1)),
    "cross entropies at once": lambda n: list(
        nn.functional.cross_entropy(
            _pairs(n).view(-1, 2), LABELS.long().repeat_interleave(TASKS), reduction="none"
        )
        .view(BATCH, TASKS)
        .mean(0)
    ),
    "fixed matrix": lambda n: _outputs(n, _joined_outputs(n) @ EYE),
    "sum of padded outputs": lambda n: _outputs(
        n,
        sum(
            nn.functional.pad(o[:, None], (i, TASKS - 1 - i)) for i, o in enumerate(n.outputs())
        ).tanh(),
    ),
    "sum of padded outputs, scaled": lambda n: _columns(
        2 * sum(_squares_in_place(n), torch.zeros(BATCH, TASKS, dtype=torch.float64))
    ),
    "factors of the heads": lambda n: _outputs(
        n, _joined_outputs(n).sigmoid() * torch.cat([head.bias for head in n.heads])
    ),
    "a stack for each task": lambda n: _from_stacks(n.losses()),
}


def _squares_in_place(net: Plain) -> list[Tensor]:
    """Squares of each head's errors in a column of a matrix of zeros."""
    return [nn.functional.pad(s[:, None], (i, TASKS - 1 - i)) for i, s in enumerate(net.squares())]


def _from_stacks(losses: list[Tensor]) -> list[Tensor]:
    return [torch.stack(losses)[i] for i in range(TASKS)]


def _joined_outputs(net: Plain) -> Tensor:
    return torch.stack(net.outputs(), 1)


def _pairs(net: Plain) -> Tensor:
    """The logits of all heads, side by side."""
    return torch.cat([torch.stack([o, 10.0**i - o], 1) for i, o in enumerate(net.outputs())], 1)


def _entropies(logits: Sequence[Tensor]) -> list[Tensor]:
    return [nn.functional.cross_entropy(one, LABELS.long()) for one in logits]


@pytest.mark.parametrize("name", list(JOINED))
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-auto", "imtl-g"])
def test_heads_below_joined_outputs_are_not_shared(name: str, method: str) -> None:
    make = JOINED[name]
    net, same = plain(), plain()
    balancer = Balancer(method, weight_heads=False, every=2)
    out = balancer.backward(make(net))
    expected = flat_gradients(make(same), same.shared).square().sum(1)
    torch.testing.assert_close(squared_lengths(out), expected, **EXACT)
    ones = torch.ones(TASKS, dtype=torch.float64)
    assert_gradient(net, make, out.weights, ones)
    # A step that reuses the weights leaves the heads alone as well, also after a restart.
    resumed = Balancer(method, weight_heads=False, every=2)
    resumed.load_state_dict(balancer.state_dict())
    for reusing in (balancer, resumed):
        if reusing is balancer:
            for p in net.parameters:
                p.grad = None
        else:
            net = plain()
        again = reusing.backward(make(net))
        assert again.kernel is None
        assert again.weights.tolist() == out.weights.tolist()
        assert_gradient(net, make, again.weights, ones)


# Tasks read parts of a tensor that an operation mixed, and added to the unmixed tensor: the mixed
# part's gradient passes the joined tensor again.
REMIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "log-softmax by hand": lambda y: y - y.logsumexp(-1, keepdim=True),
    "standardized": lambda y: y / y.std(0),
    "centered by the median": lambda y: y - y.median(0, keepdim=True).values,
    "normalized": lambda y: y / (1 + y.square().sum(-1, keepdim=True)).sqrt(),
    "gated": lambda y: y * y.mean(-1, keepdim=True).sigmoid(),
    "swish": lambda y: y * y.sigmoid(),
    "residual": lambda y: y + y.tanh(),
    "residual, neighbors": lambda y: y + y.roll(1, 0).sin(),
    "attention over tasks": lambda y: y + (y @ y.transpose(1, 2)).softmax(-1) @ y,
    "twice": lambda y: (y + y.tanh()) * (y + y.tanh()).sum((1, 2), keepdim=True).sigmoid(),
}


@pytest.mark.parametrize("name", list(REMIXED))
@pytest.mark.parametrize("heads", ["one", "one each"])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-auto", "imtl-g"])
def test_gradients_that_pass_joined_outputs_twice_count_once(
    name: str, heads: str, method: str
) -> None:
    torch.manual_seed(0)
    trunk, x = linear(4, 5), data(BATCH, 4)
    made = [linear(5, 6)] if heads == "one" else [linear(5, 3), linear(5, 3)]

    def losses() -> list[Tensor]:
        z = trunk(x).tanh()
        y = REMIXED[name](torch.cat([head(z) for head in made], 1).view(BATCH, 2, 3))
        return [(y[:, i] - 3**i).square().mean() for i in range(2)]

    heads_shared = [flat_gradients(losses(), weights(head)).abs().amax(1) > 0 for head in made]
    shared = weights(trunk, *(h for h, m in zip(made, heads_shared, strict=True) if m.all()))
    jacobian = flat_gradients(losses(), shared)
    out = Balancer(method).backward(losses())
    torch.testing.assert_close(squared_lengths(out), jacobian.square().sum(1), **EXACT)
    torch.testing.assert_close(found_gradient(shared), out.weights @ jacobian, **EXACT)


@pytest.mark.parametrize("steps", [2, 7])
def test_residual_blocks_that_tasks_leave_by_parts(steps: int) -> None:
    torch.manual_seed(0)
    body, x = nn.Sequential(linear(4, 8), nn.Tanh(), linear(8, 4)), data(BATCH, 4)

    def losses() -> list[Tensor]:
        y = x
        for _ in range(steps):
            y = y + 0.5 * body(y)
        return [(y[:, :2] - 1).square().mean(), (y[:, 2:] - 20).square().mean()]

    jacobian = flat_gradients(losses(), list(body.parameters()))
    out = Balancer("imtl-g").backward(losses())
    torch.testing.assert_close(out.kernel.gramian(), jacobian @ jacobian.T, **EXACT)
    # The gradients on the cut, each from where it arrives on, are the whole gradient.
    body.zero_grad()
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses())
    torch.testing.assert_close(
        found_gradient(list(body.parameters())), out.weights @ jacobian, **EXACT
    )


def test_the_explanation_does_not_say_that_heads_are_shared() -> None:
    assert "at most" in str(Balancer().explain(JOINED["sigmoid"](plain())))


def test_logits_side_by_side_are_followed_to_the_heads() -> None:
    net = plain()
    out = Balancer("ntkmtl-sr", minibatches=1).backward(JOINED["cross entropy of slices"](net))
    z = net.trunk(net.x).detach().requires_grad_()
    pairs = [torch.stack([o, 10.0**i - o], 1) for i, o in enumerate(net.outputs(z))]
    expected = flat_gradients(_entropies(pairs), [z]).square().sum(1)
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)


def test_parts_of_joined_features_share_what_both_read() -> None:
    # All parameters have gradients in both tasks, so that nothing changes for such networks.
    torch.manual_seed(0)
    first, second = linear(4, 3), linear(4, 3)
    heads = [linear(4, 1), linear(4, 1)]
    parameters = weights(first, second)

    def losses() -> list[Tensor]:
        z = torch.cat([first(x).tanh(), second(x).tanh()], 1)
        return [heads[0](z[:, :4]).square().mean(), heads[1](z[:, 2:]).square().mean()]

    x = data(BATCH, 4)
    balancer = Balancer("ntkmtl")
    for _ in range(2):
        out = balancer.backward(losses())
        expected = flat_gradients(losses(), parameters).square().sum(1)
        torch.testing.assert_close(out.eigenvalues, expected, **EXACT)


# ------------------------------------------------------------------ losses of losses


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-auto"])
def test_a_loss_computed_from_another_loss(method: str) -> None:
    net = plain()

    def losses(n: Plain) -> list[Tensor]:
        a, b, _ = n.losses()
        return [a, a + b]

    made = losses(net)
    touched = [*net.shared, *net.heads[0].parameters()]  # the first head serves both
    expected = flat_gradients(made, touched).square().sum(1)
    with pytest.raises(ValueError, match="the loss of task 0 is itself a part of another"):
        Balancer("ntkmtl-sr", minibatches=1).backward(made)
    out = Balancer(method, weight_heads=True).backward(made)
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)
    assert_gradient(net, losses, out.weights)


def test_one_loss_twice() -> None:
    net = plain()
    loss = net.losses()[0]
    expected = flat_gradients([loss], net.parameters).square().sum()
    out = Balancer().backward([loss, loss])
    torch.testing.assert_close(out.eigenvalues, torch.stack([expected] * 2), **EXACT)
    assert_gradient(net, lambda n: [n.losses()[0]] * 2, out.weights)


def test_one_task_has_weight_one_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    for method in ("ntkmtl-auto", "ntkmtl-sr", "ntkmtl", "mgda"):
        net = plain()
        out = Balancer(method).backward(net.losses()[:1])
        assert out.weights.tolist() == [1.0]
        assert_gradient(net, lambda n: n.losses()[:1], out.weights)
    assert not [w for w in recwarn if "share" in str(w.message)]


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "ntkmtl", "mgda"])
@pytest.mark.parametrize("how", ["frozen", "detached"])
def test_a_trunk_that_is_not_trained(method: str, how: str) -> None:
    net = plain()
    balancer = Balancer(method)
    if how == "frozen":
        net.trunk.requires_grad_(False)
    z = net.trunk(net.x)
    with pytest.warns(UserWarning, match="share no parameter that is trained.*frozen"):
        out = balancer.backward(net.losses(z.detach() if how == "detached" else z))
    assert out.weights.tolist() == [1.0] * TASKS
    assert all(p.grad is None for p in net.trunk.parameters())
    same = plain()
    total = flat_gradients(same.losses(), weights(*same.heads)).sum(0)
    torch.testing.assert_close(found_gradient(weights(*net.heads)), total, **EXACT)


# ------------------------------------------------------------------ operations that hide networks


class Halves(torch.autograd.Function):
    """A custom operation with two outputs, linear in its input."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * z[:, :2], 3 * z[:, 2:]

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([2 * a, 3 * b], dim=1)


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "imtl-g"])
def test_a_custom_operation_with_several_outputs(method: str) -> None:
    torch.manual_seed(0)
    trunk, heads = linear(4, 5), [linear(2, 1), linear(3, 1)]
    z = trunk(data(BATCH, 4)).tanh()
    losses = [head(part).square().mean() for head, part in zip(heads, Halves.apply(z), strict=True)]
    shared = flat_gradients(losses, weights(trunk))
    jacobian = flat_gradients(losses, weights(trunk, *heads))
    out = Balancer(method, weight_heads=True).backward(losses)
    torch.testing.assert_close(squared_lengths(out), shared.square().sum(1), **EXACT)
    torch.testing.assert_close(
        found_gradient(weights(trunk, *heads)), out.weights @ jacobian, **EXACT
    )


def test_a_custom_operation_whose_outputs_may_hold_heads_is_no_representation() -> None:
    torch.manual_seed(0)
    trunk, heads = linear(4, 5), [linear(2, 1), linear(3, 1)]
    parts = Halves.apply(trunk(data(BATCH, 4)).tanh())
    losses = [head(part).square().mean() for head, part in zip(heads, parts, strict=True)]
    with pytest.raises(ValueError, match=r"task 0 reads an output of Halves.*source='auto'"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses)


class Clipped(torch.autograd.Function):
    """Its backward pass is not linear: gradients of a sum are not a sum of gradients."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-1e-3, 1e-3)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "ntkmtl-sr", "imtl-g"])
def test_a_custom_backward_pass_that_is_not_linear(method: str, named: bool) -> None:
    net = plain()
    z = Clipped.apply(net.trunk(net.x)).sigmoid()
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    balancer = Balancer(method, weight_heads=True, **options)
    out = balancer.backward(net.losses(z), z if named else None)
    same = plain()
    losses = same.losses(Clipped.apply(same.trunk(same.x)).sigmoid())
    total = sum(w * loss for w, loss in zip(out.weights, losses, strict=True))
    for p, g in zip(net.parameters, torch.autograd.grad(total, same.parameters), strict=True):
        torch.testing.assert_close(p.grad, g, **EXACT)


class Whole(nn.Module):
    def __init__(self, net: Plain) -> None:
        super().__init__()
        self.trunk, self.heads = net.trunk, nn.ModuleList(net.heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z)[:, 0] for head in self.heads]


@pytest.mark.integration
@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "mgda"])
def test_a_model_compiled_as_a_whole(method: str) -> None:
    torch.compiler.reset()
    net = plain()
    balancer = Balancer(method)
    compiled = torch.compile(Whole(net), backend="aot_eager")
    losses = [error(o, t) for o, t in zip(compiled(net.x), net.y, strict=True)]
    out = balancer.backward(losses)
    trunk = flat_gradients(plain().losses(), plain().shared)
    torch.testing.assert_close(squared_lengths(out), plain().of_trunk(), **EXACT)
    assert len(trunk) == TASKS
    on_heads = None if method == "ntkmtl-auto" else torch.ones(TASKS, dtype=torch.float64)
    assert_gradient(net, lambda n: n.losses(), out.weights, on_heads)


@pytest.mark.integration
def test_a_model_compiled_as_a_whole_has_no_representation() -> None:
    torch.compiler.reset()
    net = plain()
    balancer = Balancer("ntkmtl-sr", minibatches=1)
    compiled = torch.compile(Whole(net), backend="aot_eager")
    losses = [error(o, t) for o, t in zip(compiled(net.x), net.y, strict=True)]
    with pytest.raises(ValueError, match="which may hold"):
        balancer.backward(losses)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "ntkmtl-sr", "mgda"])
def test_a_compiled_trunk(method: str) -> None:
    torch.compiler.reset()
    net = plain()
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    balancer = Balancer(method, weight_heads=True, **options)
    z = torch.compile(net.trunk, backend="aot_eager")(net.x)
    out = balancer.backward(net.losses(z))
    expected = plain().of_features() if method == "ntkmtl-sr" else plain().of_trunk()
    torch.testing.assert_close(squared_lengths(out), expected, **EXACT)
    assert_gradient(net, lambda n: n.losses(), out.weights)


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "ntkmtl-sr", "imtl-g"])
@pytest.mark.parametrize("where", ["trunk", "heads"])
def test_reentrant_checkpoints_are_refused_with_an_explanation(method: str, where: str) -> None:
    net = plain()
    x = net.x.requires_grad_()
    if where == "trunk":
        losses = net.losses(checkpoint(net.trunk, x, use_reentrant=True))
    else:
        z = net.trunk(x)
        outputs = [checkpoint(head, z, use_reentrant=True)[:, 0] for head in net.heads]
        losses = [error(o, t) for o, t in zip(outputs, net.y, strict=True)]
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    balancer = Balancer(method, **options)
    try:
        out = balancer.backward(losses)
    except (RuntimeError, ValueError) as refused:
        message = str(refused)
    else:
        # The trunk's checkpoint below the representation runs once, in an ordinary pass.
        assert (method, where) == ("ntkmtl-sr", "trunk")
        torch.testing.assert_close(out.eigenvalues, plain().of_features(), **EXACT)
        assert_gradient(net, lambda n: n.losses(), out.weights)
        return
    assert "use_reentrant=False" in message
    assert all(p.grad is None for p in net.parameters)


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "ntkmtl-sr", "imtl-g"])
@pytest.mark.parametrize("where", ["trunk", "heads"])
def test_other_checkpoints_change_nothing(method: str, where: str) -> None:
    net = plain()
    if where == "trunk":
        losses = net.losses(checkpoint(net.trunk, net.x, use_reentrant=False))
    else:
        z = net.trunk(net.x)
        outputs = [checkpoint(head, z, use_reentrant=False)[:, 0] for head in net.heads]
        losses = [error(o, t) for o, t in zip(outputs, net.y, strict=True)]
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    out = Balancer(method, weight_heads=True, **options).backward(losses)
    expected = plain().of_features() if method == "ntkmtl-sr" else plain().of_trunk()
    torch.testing.assert_close(squared_lengths(out), expected, **EXACT)
    assert_gradient(net, lambda n: n.losses(), out.weights)


# ------------------------------------------------------------------ functions of parameters alone


class LowRank(nn.Module):
    """A frozen weight plus B A."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(columns, rows), requires_grad=False)
        self.a, self.b = nn.Parameter(data(2, rows)), nn.Parameter(data(columns, 2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + 0.5 * self.b @ self.a)


class Masked(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(columns, rows))
        self.mask = (torch.rand(columns, 1) < 0.7).double()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.mask)


class Cast(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(columns, rows).float())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


class Generated(nn.Module):
    """A weight made by a network from a learned vector."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.code, self.make = nn.Parameter(data(3)), linear(3, rows * columns)
        self.shape = (columns, rows)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.make(self.code).tanh().view(self.shape))


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "mask": Masked,
    "weight norm": lambda r, c: parametrizations.weight_norm(linear(r, c)),
    "spectral norm": lambda r, c: parametrizations.spectral_norm(linear(r, c)).eval(),
    "orthogonal": lambda r, c: parametrizations.orthogonal(linear(r, c)),
    "cast": Cast,
    "low rank": LowRank,
    "generated": Generated,
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_tasks_that_each_run_the_shared_layer_with_a_function_of_parameters(
    name: str, cached: bool
) -> None:
    """Each task runs the shared layer on samples of its own: the function of its parameters, be it
    computed once or twice, is no representation."""
    torch.manual_seed(0)
    layer, heads = LAYERS[name](4, 5), [linear(5, 1), linear(5, 1)]
    batches = [data(BATCH, 4), data(BATCH + 1, 4)]
    shared = [p for p in layer.parameters() if p.requires_grad]

    def features() -> list[Tensor]:
        if cached:
            with parametrize.cached():
                return [layer(b).tanh() for b in batches]
        return [layer(b).tanh() for b in batches]

    def losses(z: list[Tensor]) -> list[Tensor]:
        return [
            error(h(t), torch.tensor(4.0**i)) for i, (h, t) in enumerate(zip(heads, z, strict=True))
        ]

    leaves = [z.detach().requires_grad_() for z in features()]
    of_features = flat_gradients(losses(leaves), leaves).square().sum(1)
    made = losses(features())
    of_layer = flat_gradients(made, shared).double().square().sum(1)
    jacobian = flat_gradients(made, [*shared, *weights(*heads)]).double()
    rough = {"rtol": 1e-5, "atol": 1e-8} if name == "cast" else EXACT
    out = Balancer("ntkmtl").backward(made)
    torch.testing.assert_close(out.eigenvalues, of_layer, **rough)
    for p in [*shared, *weights(*heads)]:
        p.grad = None
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses(features()))
    torch.testing.assert_close(out.eigenvalues, of_features, **rough)
    torch.testing.assert_close(
        found_gradient([*shared, *weights(*heads)]).double(), out.weights @ jacobian, **rough
    )


@pytest.mark.parametrize("name", list(LAYERS))
def test_penalties_on_functions_of_parameters(name: str) -> None:
    torch.manual_seed(0)
    layer, heads = LAYERS[name](4, 5), [linear(5, 1), linear(5, 1)]
    shared = [p for p in layer.parameters() if p.requires_grad]
    z = layer(data(BATCH, 4)).tanh()
    losses = [head(z).square().mean() for head in heads]
    losses[1] = losses[1] + 0.01 * sum(p.square().sum() for p in shared)
    expected = flat_gradients(losses, shared).double().square().sum(1)
    with pytest.raises(ValueError, match="the loss of task 1 reaches a shared parameter"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses)
    out = Balancer().backward(losses)
    tolerance = {"rtol": 1e-5, "atol": 1e-8} if name == "cast" else EXACT
    torch.testing.assert_close(out.eigenvalues.double(), expected, **tolerance)


@pytest.mark.parametrize("name", ["mask", "weight norm", "spectral norm"])
def test_penalties_on_the_weights_that_such_functions_make(name: str) -> None:
    torch.manual_seed(0)
    layer, heads = LAYERS[name](4, 5), [linear(5, 1), linear(5, 1)]
    with parametrize.cached():
        z, weight = layer(data(BATCH, 4)).tanh(), layer.weight
    if name == "mask":
        weight = layer.weight * layer.mask
    losses = [head(z).square().mean() for head in heads]
    losses[1] = losses[1] + 0.01 * weight.abs().sum()
    with pytest.raises(ValueError, match="the loss of task 1 reaches a shared parameter"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses)


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "ntkmtl-sr", "imtl-g"])
def test_autocast_and_its_cached_casts(method: str) -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), [nn.Linear(5, 1) for _ in range(2)]
    batches = [torch.randn(BATCH, 4) for _ in range(2)]
    parameters = weights(trunk, *heads)

    def losses() -> list[Tensor]:
        # Both passes read one cast of the trunk's weight.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = [trunk(b) for b in batches]
            outputs = [head(t).float() for head, t in zip(heads, z, strict=True)]
            return [(o - 4.0**i).square().mean() for i, o in enumerate(outputs)]

    made = losses()
    shared = flat_gradients(made, weights(trunk))
    jacobian = flat_gradients(made, parameters)
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    out = Balancer(method, weight_heads=True, **options).backward(losses())
    rough = {"rtol": 2e-2, "atol": 1e-3}
    if method != "ntkmtl-sr":
        diagonal = squared_lengths(out).float()
        torch.testing.assert_close(diagonal, shared.square().sum(1), **rough)
    else:
        assert out.eigenvalues is not None
        assert bool((out.eigenvalues > 0).all())
    torch.testing.assert_close(found_gradient(parameters), out.weights @ jacobian, **rough)


def test_float16_gradients_that_underflow_are_refused() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5).half(), [nn.Linear(5, 1).half() for _ in range(2)]
    z = trunk(torch.randn(64, 4).half()).tanh()
    losses = [heads[0](z).square().mean(), 1e-4 * (1e-3 * heads[1](z)).float().square().mean()]
    with pytest.raises(ValueError, match=r"float16.*task 1.*scaler=scaler"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses)
    assert all(p.grad is None for p in weights(trunk, *heads))


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "ntkmtl", "mgda", "si"])
@pytest.mark.parametrize("log_losses", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_vector_losses_with_scaler_and_logarithms(
    method: str, log_losses: bool, scaled: bool
) -> None:
    if method == "si" and log_losses:
        pytest.skip("takes logarithms itself")
    masks = torch.rand(TASKS, BATCH) < 0.7
    masks[:, 0] = True
    net = plain()
    options: dict[str, Any] = {"log_losses": log_losses}
    if method != "si":
        options |= {"minibatches": 1, "weight_heads": True}
    balancer = Balancer(method, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    vectors = list(zip(net.squares(), masks, strict=True))
    out = balancer.backward(vectors, scaler=scaler)

    def means(n: Plain) -> list[Tensor]:
        return [(s * m).sum() / m.sum() for s, m in zip(n.squares(), masks, strict=True)]

    factor = 1024.0 if scaled else 1.0
    assert_gradient(net, means, out.weights * factor)
    if out.eigenvalues is not None:
        same = plain()
        balanced = [m.log() if log_losses else m for m in means(same)]
        if method == "ntkmtl-sr":
            z = same.trunk(same.x).detach().requires_grad_()
            means_of = [
                (s * m).sum() / m.sum() for s, m in zip(same.squares(z), masks, strict=True)
            ]
            balanced = [m.log() if log_losses else m for m in means_of]
            expected = flat_gradients(balanced, [z]).square().sum(1)
        else:
            expected = flat_gradients(balanced, same.shared).square().sum(1)
        torch.testing.assert_close(out.eigenvalues, expected, **EXACT)


# ------------------------------------------------------------------ hooks, in-place, several runs


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "ntkmtl", "imtl-g", "ls"])
def test_hooks_on_the_representation_act_once(method: str) -> None:
    net = plain()
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    z = net.trunk(net.x)
    z.register_hook(lambda g: -0.5 * g)  # gradient reversal
    options |= {} if method == "ls" else {"weight_heads": True}
    out = Balancer(method, **options).backward(net.losses(z))
    same = plain()
    z = same.trunk(same.x)
    z.register_hook(lambda g: -0.5 * g)
    total = out.weights @ flat_gradients(same.losses(z), same.parameters)
    torch.testing.assert_close(found_gradient(net.parameters), total, **EXACT)


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "ntkmtl", "imtl-g", "mgda"])
@pytest.mark.parametrize("budget", [0, 1 << 28])
def test_hooks_of_parameters_fire_once(method: str, budget: int) -> None:
    net = plain()
    seen: list[int] = []
    for i, p in enumerate(net.parameters):
        p.register_hook(lambda g, i=i: seen.append(i))
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    out = Balancer(method, weight_heads=True, memory_budget=budget, **options).backward(
        net.losses()
    )
    filled = [0] * len(net.parameters)
    for p in net.parameters:
        assert p.grad is not None
    assert_gradient(net, lambda n: n.losses(), out.weights)
    for i in set(seen):
        filled[i] = 1
    assert all(filled), "every parameter's hook fires"


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "ntkmtl", "imtl-g"])
def test_in_place_operations_and_views(method: str) -> None:
    torch.manual_seed(0)
    trunk, heads = linear(4, 6), [linear(6, 1), linear(3, 1)]
    x = data(BATCH, 4)

    def losses() -> list[Tensor]:
        z = trunk(x)
        z.mul_(0.5).tanh_()
        z = z.clone()
        z[:, :2].add_(1.0)
        view = z.view(-1)
        view[:3].mul_(2.0)
        a = heads[0](z)
        a.relu_()
        return [error(a, torch.tensor(2.0)), heads[1](z[:, 3:]).square().mean()]

    made = losses()
    jacobian = flat_gradients(made, weights(trunk, *heads))
    shared = flat_gradients(made, weights(trunk)).square().sum(1)
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    out = Balancer(method, weight_heads=True, **options).backward(losses())
    torch.testing.assert_close(
        found_gradient(weights(trunk, *heads)), out.weights @ jacobian, **EXACT
    )
    if method != "ntkmtl-sr":
        torch.testing.assert_close(squared_lengths(out), shared, **EXACT)


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "imtl-g"])
def test_a_module_that_is_run_several_times(method: str) -> None:
    torch.manual_seed(0)
    block, heads = linear(5, 5), [linear(5, 1) for _ in range(3)]
    x = data(BATCH, 5)

    def losses() -> list[Tensor]:
        one = block(x).tanh()
        two = block(one).tanh()
        own = block(2 * x).tanh()  # the third task's own pass
        return [
            error(h(t), torch.tensor(float(i)))
            for i, (h, t) in enumerate(zip(heads, (one, two, own), strict=True))
        ]

    made = losses()
    shared = flat_gradients(made, weights(block))
    jacobian = flat_gradients(made, weights(block, *heads))
    with pytest.raises(ValueError, match="task 1"):
        # Its second pass reads the first one's output and the weight of the block.
        _require_bypass(losses())
    out = Balancer(method, weight_heads=True).backward(made)
    torch.testing.assert_close(squared_lengths(out), shared.square().sum(1), **EXACT)
    torch.testing.assert_close(
        found_gradient(weights(block, *heads)), out.weights @ jacobian, **EXACT
    )


def _require_bypass(losses: list[Tensor]) -> None:
    """Raise as an explicit representation does; where the cut is clean, say which task is where."""
    cut = find_cut(losses)
    if cut.clean:
        raise ValueError("task 1 is measured at its own last tensor")
    Balancer("ntkmtl-sr", minibatches=1).backward(losses)


@pytest.mark.parametrize("method", ["ntkmtl-sr", "ntkmtl-auto", "ntkmtl"])
@pytest.mark.parametrize("sizes", [(6, 6), (6, 4)])
def test_own_batches_without_features(method: str, sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(linear(4, 5), nn.Tanh()), [linear(5, 1), linear(5, 1)]
    batches = [data(size, 4) for size in sizes]
    z = [trunk(b) for b in batches]
    losses = [
        error(h(t), torch.tensor(3.0**i)) for i, (h, t) in enumerate(zip(heads, z, strict=True))
    ]
    leaves = [t.detach().requires_grad_() for t in z]
    of_features = flat_gradients(
        [
            error(h(t), torch.tensor(3.0**i))
            for i, (h, t) in enumerate(zip(heads, leaves, strict=True))
        ],
        leaves,
    )
    of_trunk = flat_gradients(losses, weights(trunk)).square().sum(1)
    jacobian = flat_gradients(losses, weights(trunk, *heads))
    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    out = Balancer(method, weight_heads=True, **options).backward(losses)
    expected = of_features.square().sum(1) if method == "ntkmtl-sr" else of_trunk
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)
    torch.testing.assert_close(
        found_gradient(weights(trunk, *heads)), out.weights @ jacobian, **EXACT
    )


FACTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one": lambda e, s: (e * (-s[0]).exp() + s[0]).mean(),
    "one, after the mean": lambda e, s: e.mean() * (-s[0]).exp() + s[0],
    "positive": lambda e, s: (e / nn.functional.softplus(s[:1])).mean(),
    "each sample": lambda e, s: (s * e).mean(),
    "each sample, nonlinear": lambda e, s: nn.functional.softplus(s.square() * e).mean(),
    "shift": lambda e, s: (e + s).square().mean(),
}


@pytest.mark.parametrize("factor", list(FACTORS))
def test_learned_factors_of_losses_on_own_batches_are_no_heads(factor: str) -> None:
    # A whole network that tasks share (an equation and its boundary), and learned weights.
    torch.manual_seed(0)
    net = nn.Sequential(linear(4, 5), nn.Tanh(), linear(5, 1))
    factors = [nn.Parameter(torch.rand(BATCH, dtype=torch.float64)) for _ in range(2)]

    def losses() -> list[Tensor]:
        return [
            FACTORS[factor]((net(x)[:, 0] - 10.0**i).square(), s)
            for i, (x, s) in enumerate(zip(batches, factors, strict=True))
        ]

    batches = [data(BATCH, 4) for _ in range(2)]
    with pytest.raises(ValueError, match=r"the loss of task 0 .* use source='auto'"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses())
    made = losses()
    expected = flat_gradients(made, weights(net)).square().sum(1)
    jacobian = flat_gradients(made, [*weights(net), *factors])
    out = Balancer("ntkmtl", weight_heads=True).backward(made)
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)
    torch.testing.assert_close(
        found_gradient([*weights(net), *factors]), out.weights @ jacobian, **EXACT
    )


def test_learned_factors_beside_heads_on_own_batches() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(linear(4, 5), nn.Tanh()), [linear(5, 1), linear(5, 1)]
    factors = [nn.Parameter(torch.tensor(0.5 + i, dtype=torch.float64)) for i in range(2)]
    z = [trunk(data(BATCH, 4)) for _ in range(2)]

    def losses(z: list[Tensor]) -> list[Tensor]:
        return [
            (s * (h(t) - 3.0**i).square()).mean()
            for i, (h, t, s) in enumerate(zip(heads, z, factors, strict=True))
        ]

    leaves = [t.detach().requires_grad_() for t in z]
    expected = flat_gradients(losses(leaves), leaves).square().sum(1)
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses(z))
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)


def test_tasks_that_share_nothing_do_not_stop_mini_batches() -> None:
    net = plain()
    lone = linear(4, 1)
    losses = [*net.losses(), lone(net.x).square().mean()]
    out = Balancer("ntkmtl-sr", minibatches=2, batch_dim=0).backward(losses)
    alone = Balancer("ntkmtl-sr", minibatches=2, batch_dim=0).backward(plain().losses())
    torch.testing.assert_close(out.weights[:TASKS], alone.weights, **EXACT)
    assert float(out.weights[-1]) == 1.0


def test_shared_may_name_parameters_above_the_features() -> None:
    net = plain()
    z = net.trunk(net.x)
    losses = net.losses(z)
    expected = flat_gradients(losses, net.parameters).square().sum(1)
    out = Balancer("ntkmtl", shared=net.parameters).backward(losses, features=z)
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)


def test_a_head_that_mixes_samples_has_no_mini_batches() -> None:
    torch.manual_seed(0)
    trunk, heads = linear(4, 4), [linear(4, 1), linear(4, 1)]
    z = trunk(data(BATCH, 4)).tanh()
    mixed = torch.softmax(z @ z.T, dim=1) @ z
    losses = [heads[0](mixed)[:, 0].square(), heads[1](z)[:, 0].square()]
    with pytest.raises(
        ValueError, match=r"samples of task 0, or its head mixes them.*minibatches=1"
    ):
        Balancer("ntkmtl-sr", minibatches=2).backward(losses)
    assert all(p.grad is None for p in weights(trunk, *heads))
