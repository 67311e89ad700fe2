"""Small models of every kind, and their kernels by slow and obvious code.

It shares nothing with the library: gradients come from ``torch.autograd.grad``, one row at a time,
and sums are loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from placement import DTYPE, EXACT

__all__ = ["EXACT", "Case", "make_case"]

BATCH = 7
TASKS = 3


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU(), nn.AdaptiveAvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Recurrent(nn.Module):
    """Returns the last state, or the whole sequence with the batch in dimension 1."""

    def __init__(self, sequence: bool) -> None:
        super().__init__()
        self.sequence = sequence
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.gru(x)
        return output if self.sequence else output[-1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.embed(x))
        return self.attention(x, x, x, need_weights=False)[0]


class Graph(nn.Module):
    """Messages along edges, summed at their targets; nodes summed by graph."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(6, 4)
        self.update = nn.Linear(7, 5)

    def forward(self, nodes: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        source, target = edges
        messages = torch.tanh(self.message(torch.cat([nodes[source], nodes[target]], dim=1)))
        gathered = nodes.new_zeros(len(nodes), 4).index_add(0, target, messages)
        updated = torch.tanh(self.update(torch.cat([nodes, gathered], dim=1)))
        return updated.new_zeros(int(graph.max()) + 1, 5).index_add(0, graph, updated)


class Head(nn.Module):
    """One number per sample."""

    def __init__(self, width: int, batch_dim: int = 0) -> None:
        super().__init__()
        self.batch_dim = batch_dim
        self.layers = nn.Sequential(nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.movedim(self.batch_dim, 0).flatten(1))[:, 0]


@dataclass
class Case:
    """A trunk, k heads, a batch and its targets."""

    trunk: nn.Module
    heads: nn.ModuleList
    inputs: tuple[Tensor, ...]
    targets: Tensor
    batch_dim: int = 0

    def features(self) -> Tensor:
        return self.trunk(*self.inputs)

    def rows(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Losses of each sample, shape (B,) for each task; ``features`` for all or per head."""
        views = [features] * len(self.heads) if isinstance(features, Tensor) else list(features)
        errors = [head(z) - y for head, z, y in zip(self.heads, views, self.targets, strict=True)]
        # Losses of different kinds and sizes.
        kinds = [torch.square, lambda e: 10 * torch.nn.functional.softplus(e), lambda e: e**2 / 50]
        return [kinds[i % 3](e) for i, e in enumerate(errors)]

    def per_sample(self, features: Sequence[Tensor] | Tensor) -> Tensor:
        """The same as one tensor of shape (k, B), in which the tasks' graphs meet."""
        return torch.stack(self.rows(features))

    def losses(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        return [row.mean() for row in self.rows(features)]

    @property
    def shared(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), *self.heads.parameters()]


def _graphs() -> tuple[Tensor, Tensor, Tensor]:
    sizes = [1 + i % 3 for i in range(BATCH)]
    graph = torch.repeat_interleave(torch.arange(BATCH), torch.tensor(sizes))
    pairs = [
        (a, b)
        for a in range(len(graph))
        for b in range(len(graph))
        if a != b and graph[a] == graph[b]
    ]
    return torch.randn(len(graph), 3, dtype=DTYPE), torch.tensor(pairs).T, graph


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))


_MAKERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], int, int]] = {
    "mlp": (_mlp, lambda: (_draw(BATCH, 4),), 5, 0),
    "convolutional": (Convolutional, lambda: (_draw(BATCH, 2, 5, 5),), 12, 0),
    "gru": (lambda: Recurrent(False), lambda: (_draw(4, BATCH, 3),), 4, 0),
    "gru-sequence": (lambda: Recurrent(True), lambda: (_draw(4, BATCH, 3),), 16, 1),
    "attention": (Attention, lambda: (_draw(BATCH, 3, 3),), 12, 0),
    "graph": (Graph, _graphs, 5, 0),
}
TRUNKS = list(_MAKERS)


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DTYPE)


def make_case(name: str = "mlp", tasks: int = TASKS, seed: int = 0) -> Case:
    """Return a fresh float64 case, the same one each time."""
    torch.manual_seed(seed)
    trunk, inputs, width, batch_dim = _MAKERS[name]
    heads = nn.ModuleList([Head(width, batch_dim) for _ in range(tasks)])
    made = Case(trunk().to(DTYPE), heads.to(DTYPE), inputs(), _draw(tasks, BATCH), batch_dim)
    made.trunk.train()
    return made


def sizes(batch: int, n: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(batch), n)]


def windows(split: Sequence[int]) -> list[range]:
    ends = np.cumsum(split)
    return [range(end - size, end) for end, size in zip(ends.tolist(), split, strict=True)]


def flat_gradient(output: Tensor, inputs: Iterable[Tensor]) -> Tensor:
    """One row of a Jacobian."""
    inputs = list(inputs)
    grads = torch.autograd.grad(output, inputs, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(x) if g is None else g).reshape(-1)
            for x, g in zip(inputs, grads, strict=True)
        ]
    )


def products(rows: list[list[Tensor]]) -> Tensor:
    """K[i, u, j, v] = <rows[i][u], rows[j][v]>, float64 of shape (k, n, k, n)."""
    k, n = len(rows), len(rows[0])
    values = torch.zeros(k, n, k, n, dtype=torch.float64)
    for i in range(k):
        for u in range(n):
            for j in range(k):
                for v in range(n):
                    values[i, u, j, v] = (rows[i][u].double() * rows[j][v].double()).sum()
    return values


def minibatch_means(
    per_sample: Tensor, split: Sequence[int], counts: Tensor | None = None
) -> list[list[Tensor]]:
    """The mean loss of each task on each mini-batch.

    With counts, ``per_sample`` holds sums over a sample's labels, and means are over labels.
    """
    means = []
    for i, row in enumerate(per_sample):
        means.append([])
        for window in windows(split):
            part = row[window.start : window.stop]
            if counts is None:
                means[-1].append(part.mean())
            else:
                labels = counts[i, window.start : window.stop].sum()
                means[-1].append(part.sum() / labels if labels > 0 else 0.0 * part.sum())
    return means


def exact(
    per_sample: Tensor,
    parameters: Iterable[Tensor],
    split: Sequence[int],
    counts: Tensor | None = None,
) -> Tensor:
    """Kernel with respect to parameters: the Jacobian, row by row."""
    parameters = list(parameters)
    means = minibatch_means(per_sample, split, counts)
    return products([[flat_gradient(m, parameters) for m in row] for row in means])


def representation(
    per_sample: Tensor,
    features: Sequence[Tensor],
    split: Sequence[int],
    pooling: str,
    batch_dim: int = 0,
    counts: Tensor | None = None,
) -> Tensor:
    """Kernel with respect to shared features, summed over them.

    Pooled sums the gradient of a mini-batch's mean loss over samples; blockwise leaves it where it
    is in the batch; kernel is the sum over all pairs of samples, in four loops.
    """
    means = minibatch_means(per_sample, split, counts)
    total = torch.zeros((), dtype=torch.float64)
    for z in features:
        grads = [
            [torch.autograd.grad(m, z, retain_graph=True, allow_unused=True)[0] for m in row]
            for row in means
        ]
        rows = [
            [(torch.zeros_like(z) if g is None else g).movedim(batch_dim, 0).flatten(1) for g in r]
            for r in grads
        ]
        if pooling == "pooled":
            total = total + products([[g.sum(dim=0) for g in row] for row in rows])
        elif pooling == "blockwise":
            total = total + products(rows)
        else:
            samples = z.detach().movedim(batch_dim, 0).flatten(1)
            total = total + _joined(rows, samples)
    return total


def _joined(rows: list[list[Tensor]], samples: Tensor) -> Tensor:
    k, n, batch = len(rows), len(rows[0]), len(samples)
    values = torch.zeros(k, n, k, n, dtype=torch.float64)
    theta = [[(samples[s] * samples[t]).sum() for t in range(batch)] for s in range(batch)]
    for i in range(k):
        for u in range(n):
            for j in range(k):
                for v in range(n):
                    values[i, u, j, v] = sum(
                        (rows[i][u][s] * rows[j][v][t]).sum() * theta[s][t]
                        for s in range(batch)
                        for t in range(batch)
                        if rows[i][u][s].any() and rows[j][v][t].any()
                    )
    return values
