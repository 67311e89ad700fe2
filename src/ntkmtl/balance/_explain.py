"""The result of :meth:`ntkmtl.Balancer.explain`: where the shared part of a network ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ntkmtl.balance import _auto
from ntkmtl.balance._core import Core
from ntkmtl.graph import (
    Bypass,
    Cut,
    Features,
    FeaturesLike,
    cut_nodes,
    find_cut,
    head_graph,
    path_around,
    shape_of,
    starts,
)
from ntkmtl.kernel._sources import cut_graph

__all__ = ["Explanation", "SharedTensor", "explanation"]

_SHOWN = 6
"""Number of parameter names that are printed."""


@dataclass(frozen=True)
class SharedTensor:
    """A tensor of the representation.

    Attributes:
        shape: Its shape, None if unknown.
        operation: Name of the operation that returned it, such as ``"relu"``.
        module: Name of the module that its last parameter belongs to, empty if unknown.
        tasks: Names of the tasks that read it.
    """

    shape: tuple[int, ...] | None
    operation: str
    module: str
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        shape = "a tensor" if self.shape is None else str(self.shape)
        module = f" after {self.module}" if self.module else ""
        return f"{shape} made by {self.operation}{module}"


@dataclass(frozen=True)
class Explanation:
    """Where the shared part of a network ends, found from its losses.

    Attributes:
        tasks: Names of the tasks with a loss.
        tensors: The tensors of the representation.
        shared: Names (or shapes, if names are unknown) of the shared parameters.
        entries: Total number of entries of the shared parameters.
        private: For each task the number of parameters that only it reaches.
        bypasses: By task, why some of its gradient does not pass through the representation; no
            entry for the other tasks.
        unconnected: Tasks that share nothing with another task.
        weights: How the Balancer computes weights for this graph.
        features: Whether the features that were passed cut every path, and if not why; empty if
            none were passed.
        opaque: Whether some operation may contain parameters of single tasks, as a model compiled
            as a whole does, or one activation of all heads' outputs. Then only gradients show which
            parameters are shared.
    """

    tasks: tuple[str, ...]
    tensors: tuple[SharedTensor, ...]
    shared: tuple[str, ...]
    entries: int
    private: dict[str, int]
    bypasses: dict[str, tuple[str, ...]]
    unconnected: tuple[str, ...]
    weights: str
    features: str = ""
    opaque: bool = False

    @property
    def clean(self) -> bool:
        """Whether every task's whole gradient passes through the representation."""
        return not self.bypasses

    def __str__(self) -> str:
        lines = [f"{len(self.tasks)} tasks: {', '.join(self.tasks)}"]
        if self.tensors:
            lines.append("the representation, where the part that tasks share ends:")
            alike = Counter(f"{t}, read by {self._readers(t.tasks)}" for t in self.tensors)
            lines += [f"  {f'{n} x ' if n > 1 else ''}{text}" for text, n in alike.items()]
        else:
            lines.append("no representation: no tensor of samples is read by two tasks")
        most = "at most " if self.opaque else ""
        lines.append(
            f"shared by two or more tasks: {most}{len(self.shared)} parameters, {self.entries} "
            f"entries{_listed(self.shared)}"
        )
        lines += [self._of_task(name) for name in self.tasks]
        if self.features:
            lines.append(f"features: {self.features}")
        lines.append(f"weights: {self.weights}")
        return "\n".join(lines)

    def _readers(self, names: Sequence[str]) -> str:
        return "all tasks" if len(names) == len(self.tasks) else ", ".join(names)

    def _of_task(self, name: str) -> str:
        start = f"task {name}: {self.private[name]} parameters of its own; "
        if name in self.unconnected:
            return start + "it shares nothing with another task, so its weight is 1"
        if name not in self.bypasses:
            return start + "all of its gradient passes the representation"
        return start + "its loss " + "; ".join(self.bypasses[name])


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN])
    return f": {shown}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def explanation(
    core: Core,
    losses: Sequence[tuple[str, Tensor]],
    features: FeaturesLike | None,
    model: nn.Module | None,
    known: Sequence[str],
) -> Explanation:
    """Describe the cut of some losses.

    Args:
        core: The Balancer's options and state.
        losses: Names and losses of the tasks with labels.
        features: Features to check, or None.
        model: The model, for names of parameters; or None.
        known: Names of all tasks.
    """
    tasks = [name for name, _ in losses]
    cut = find_cut([loss for _, loss in losses])
    names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    readers: list[list[str]] = [[] for _ in cut.targets]
    for name, own in zip(tasks, cut.crossings, strict=True):
        for target in sorted({c.target for c in own}):
            readers[target].append(name)
    bypasses = {
        name: _reasons(around, names)
        for name, around in zip(tasks, cut.bypasses, strict=True)
        if around
    }
    place = {key: i for i, key in enumerate(names)}
    shared = sorted(cut.shared, key=lambda p: place.get(id(p), len(place)))
    return Explanation(
        tasks=tuple(tasks),
        tensors=tuple(
            SharedTensor(shape_of(edge), _readable(edge[0]), _module(cut, edge[0], names), tuple(r))
            for edge, r in zip(cut.targets, readers, strict=True)
        ),
        shared=tuple(names.get(id(p), str(tuple(p.shape))) for p in shared),
        entries=sum(p.numel() for p in cut.shared),
        private={name: len(cut.heads[i]) for i, name in enumerate(tasks)},
        bypasses=bypasses,
        unconnected=tuple(name for i, name in enumerate(tasks) if i not in cut.connected),
        weights=_weights(core, cut),
        features="" if features is None else _of_features(core, losses, features, known),
        opaque=cut.opaque or cut.joined,
    )


def _reasons(around: Sequence[Bypass], names: dict[int, str]) -> tuple[str, ...]:
    """Return each reason once, with its parameters."""
    by_reason: dict[str, list[str]] = {}
    for bypass in around:
        found = by_reason.setdefault(bypass.reason, [])
        if (parameter := bypass.parameter) is not None:
            name = names.get(id(parameter), f"of shape {tuple(parameter.shape)}")
            if name not in found:
                found.append(name)
    return tuple(
        f"{reason} ({_listed(found)[2:]})" if found else reason
        for reason, found in by_reason.items()
    )


def _readable(node: Any) -> str:
    """Return an operation's name similar to that of the torch function."""
    name = str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
    known = {"Addmm": "linear", "Mm": "matmul", "Bmm": "matmul", "Convolution": "convolution"}
    return known.get(name, name.lower())


def _module(cut: Cut, node: Any, names: dict[int, str]) -> str:
    """Return the name of the module whose parameter was used last before a node."""
    for parameter in cut_nodes(cut, node):
        if name := names.get(id(parameter)):
            return name.rpartition(".")[0]
    return ""


def _of_features(
    core: Core,
    losses: Sequence[tuple[str, Tensor]],
    features: FeaturesLike,
    known: Sequence[str],
) -> str:
    names = [name for name, _ in losses]
    absent = [i for i, name in enumerate(known) if name not in names]
    whole = Features.of(features, known, core.options.batch_dim or 0, absent)
    begin = starts([loss for _, loss in losses])
    named = whole.select([known.index(name) for name in names])
    if not head_graph(begin, named).depends:
        return "no loss depends on them"
    try:
        named, graph = cut_graph(begin, named, names)
    except ValueError as error:
        return str(error)
    return path_around(graph, named, names)[0] or "they cut every path"


def _weights(core: Core, cut: Cut) -> str:
    """Describe how the Balancer computes weights for this graph."""
    options = core.options
    if options.requires == "losses":
        return f"{options.method}, from the losses alone"
    if not cut.connected or not (cut.shared or cut.custom):
        return "1 for every task, as they share nothing that is trained"
    if options.source == "auto":
        steps = _auto.period(core, cut.tasks)
        return f"{options.method}, from exact kernels, one in {steps} steps or more often, averaged"
    if options.source == "exact":
        return f"{options.method}, from the exact kernel of the shared parameters"
    if cut.clean:
        return f"{options.method}, from the {options.source}"
    return (
        f"none: {options.method} reads the {options.source}, which does not carry every gradient; "
        "use source='auto' or source='exact'"
    )
