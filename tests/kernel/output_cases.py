"""Small networks for the NTK of outputs, and their kernels from one gradient at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernel.oracle import Attention, Convolutional, Graph, Recurrent, flat_gradient

SAMPLES = 6


class Network(nn.Module):
    """A trunk and heads of different widths, outputs by task."""

    def __init__(
        self,
        trunk: nn.Module,
        width: int,
        sizes: Sequence[int] = (1, 1, 1),
        batch_dim: int = 0,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.batch_dim = batch_dim
        self.heads = nn.ModuleDict({f"t{i}": nn.Linear(width, s) for i, s in enumerate(sizes)})

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        return self.trunk.parameters()

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.trunk(*inputs).movedim(self.batch_dim, 0).flatten(1))
        return {name: head(z) for name, head in self.heads.items()}


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def graph_batch(sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, edges and each node's graph: samples are along no dimension."""
    graph = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pairs = [
        (a, b)
        for a in range(len(graph))
        for b in range(len(graph))
        if a != b and graph[a] == graph[b]
    ]
    return _draw(len(graph), 3), torch.tensor(pairs).T, graph


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))


@dataclass
class OutputCase:
    """A network in eval mode, its inputs, and the options that say what they are."""

    network: nn.Module
    inputs: Any
    options: dict[str, Any]

    def outputs(self) -> list[Tensor]:
        """Outputs of each task, shape (N, C)."""
        arguments = self.inputs if type(self.inputs) is tuple else (self.inputs,)
        found = self.network(*arguments)
        if isinstance(found, Tensor):
            found = [found]
        values = list(found.values()) if isinstance(found, dict) else list(found)
        return [t.reshape(len(t), -1) for t in values]


_MAKERS: dict[str, Callable[[Sequence[int]], OutputCase]] = {
    "mlp": lambda s: OutputCase(Network(_mlp(), 5, s), _draw(SAMPLES, 4), {}),
    "convolutional": lambda s: OutputCase(
        Network(Convolutional(), 12, s), _draw(SAMPLES, 2, 5, 5), {}
    ),
    "recurrent": lambda s: OutputCase(
        Network(Recurrent(True), 16, s, batch_dim=1), _draw(4, SAMPLES, 3), {"batch_dim": 1}
    ),
    "attention": lambda s: OutputCase(Network(Attention(), 12, s), _draw(SAMPLES, 3, 3), {}),
    "graph": lambda s: OutputCase(Network(Graph(), 5, s), graph_batch([1, 2, 3, 1, 2, 3]), {}),
}
NETWORKS = list(_MAKERS)


def make_output_case(name: str = "mlp", sizes: Sequence[int] = (1, 1, 1)) -> OutputCase:
    """Return a fresh float64 case, the same one each time, its batch norms in use before."""
    torch.manual_seed(0)
    case = _MAKERS[name](sizes)
    case.network.double().train()
    case.outputs()
    case.network.eval()
    return case


def jacobian(outputs: Sequence[Tensor], parameters: Iterable[Tensor]) -> list[list[list[Tensor]]]:
    """Gradient of component c of sample u of task i at ``[i][u][c]``, one after the other."""
    parameters = list(parameters)
    return [[[flat_gradient(o, parameters) for o in row] for row in task] for task in outputs]


def full_kernel(rows: list[list[list[Tensor]]]) -> Tensor:
    """All inner products, rows by task, sample and component."""
    flat = [g for task in rows for sample in task for g in sample]
    return torch.stack([torch.stack([(a * b).sum() for b in flat]) for a in flat])


def trace_block(rows: list[list[list[Tensor]]], i: int, j: int) -> Tensor:
    """Block (i, j) with components traced."""
    return torch.stack(
        [
            torch.stack(
                [sum((a * b).sum() for a, b in zip(u, v, strict=True)) for v in rows[j]]  # type: ignore[misc]
            )
            for u in rows[i]
        ]
    )
