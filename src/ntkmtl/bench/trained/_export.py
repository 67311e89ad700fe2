"""Exporting a trained network by ``torch.export``."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems.base import MultiTaskModel, Problem
from ntkmtl.files import atomic_write

__all__ = ["export_program"]

SAMPLES = 3, 5
"""Samples of the two batches: dimensions in which the batches differ are dynamic."""

# torch.export has no class of its own for what it cannot do.
_ERRORS = (
    *(RuntimeError, ValueError, TypeError, AttributeError, KeyError, AssertionError),
    NotImplementedError,
)


class _Forward(nn.Module):
    """Maps the tensors of a batch that the network reads to predictions by task."""

    def __init__(
        self,
        model: MultiTaskModel,
        problem: Problem,
        tasks: tuple[str, ...] | None,
        batch: Any,
        read: Sequence[int],
    ) -> None:
        super().__init__()
        self.model, self.problem, self.tasks, self.read = model, problem, tasks, read
        self.batch, self.all = batch, list(_tensors(batch).values())

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        whole = list(self.all)
        for place, tensor in zip(self.read, tensors, strict=True):
            whole[place] = tensor
        batch = _with_tensors(self.batch, iter(whole))
        outputs = self.model.predict(self.model.represent(batch))
        said = self.problem.predictions(outputs, self.tasks)
        return {
            task: one.values if one.probabilities is None else one.probabilities
            for task, one in said.items()
        }


def export_program(
    path: Path, model: MultiTaskModel, problem: Problem, tasks: tuple[str, ...] | None
) -> None:
    """Write a network, from batches to predictions, as one ``.pt2`` file.

    Args:
        path: The file.
        model: The network, in evaluation mode.
        problem: Its problem, with its data: two batches of the training split show which tensors
            the network reads and which dimensions vary.
        tasks: The tasks that the network was built for, None for all.

    Raises:
        ValueError: The network cannot be exported, or the exported one computes something else.
        OSError: The file cannot be written.
    """
    first, other = (problem.evaluation_batch("train", torch.arange(n)) for n in SAMPLES)
    try:
        with torch.no_grad():
            read = _read(model, problem, tasks, first)
            whole = _Forward(model, problem, tasks, first, read)
            program = _exported(whole, first, other, read)
            _compare(program, _Forward(model, problem, tasks, other, read), other, read)
    except _ERRORS as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"this network of {problem.name} cannot be exported by torch.export: {reason}. Use it "
            "in Python instead: ntkmtl.bench.load(RUN).predict(...)"
        ) from error
    predictions = problem.predictions(model.predict(model.represent(first)), tasks)
    names = list(_tensors(first))
    about = {
        "inputs": [names[place] for place in read],
        "tasks": {task: list(one.classes) for task, one in predictions.items()},
    }
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"ntkmtl.json": json.dumps(about)})
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def _read(
    model: MultiTaskModel, problem: Problem, tasks: tuple[str, ...] | None, batch: Any
) -> list[int]:
    """Return the places of a batch's tensors that predictions depend on: labels are left out."""
    tensors = tuple(_tensors(batch).values())
    every = range(len(tensors))
    program = torch.export.export(_Forward(model, problem, tasks, batch, every), tensors)
    users = {node.name: len(node.users) for node in program.graph.nodes}
    inputs = program.graph_signature.user_inputs
    read = [place for place, name in zip(every, inputs, strict=True) if users[str(name)]]
    if not read:
        raise ValueError("its predictions depend on no tensor of a batch")
    return read


def _exported(
    whole: _Forward, first: Any, other: Any, read: Sequence[int]
) -> torch.export.ExportedProgram:
    small, large = list(_tensors(first).values()), list(_tensors(other).values())
    shapes: list[Mapping[int, Any]] = [
        {
            dimension: torch.export.Dim.AUTO
            for dimension, sizes in enumerate(zip(small[p].shape, large[p].shape, strict=True))
            if sizes[0] != sizes[1]
        }
        for p in read
    ]
    return torch.export.export(
        whole, tuple(small[p] for p in read), dynamic_shapes={"tensors": tuple(shapes)}
    )


def _compare(
    program: torch.export.ExportedProgram, whole: _Forward, batch: Any, read: Sequence[int]
) -> None:
    """Refuse an exported program that differs from the network on a batch of another size."""
    every = list(_tensors(batch).values())
    tensors = tuple(every[place] for place in read)
    exported, wanted = program.module()(*tensors), whole(*tensors)
    for task, values in wanted.items():
        if not torch.allclose(exported[task], values, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(f"the exported program predicts other values of {task}")


# ------------------------------------------------------------------------------------------------
# Batches: tensors in tuples, lists and dicts


def _tensors(batch: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of a batch by their names in it, as ``graphs.nodes`` or ``0``."""
    if isinstance(batch, Tensor):
        return {name or "batch": batch}
    fields = getattr(batch, "_fields", None)
    parts: Mapping[str, Any]
    if isinstance(batch, tuple | list):
        parts = dict(zip(fields or map(str, range(len(batch))), batch, strict=True))
    else:
        parts = batch if isinstance(batch, Mapping) else {}
    return {
        key: tensor
        for part, inner in parts.items()
        for key, tensor in _tensors(inner, f"{name}.{part}".lstrip(".")).items()
    }


def _with_tensors(batch: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a batch with other tensors, in the order of :func:`_tensors`."""
    if isinstance(batch, Tensor):
        return next(tensors)
    if isinstance(batch, tuple | list):
        parts = [_with_tensors(part, tensors) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, Mapping):
        return {key: _with_tensors(part, tensors) for key, part in batch.items()}
    return batch
