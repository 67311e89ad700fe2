"""Flat gradients that methods follow over steps: the same entry for the same parameter.

Parameters are found by a walk over the graph, whose order changes with the tasks that have labels.
The order of the first step is kept. Within a process, parameters are known by identity. A state
that was loaded knows their shapes, and where a walk from each loss alone met them: such a walk is
the same whatever other tasks have labels.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntkmtl.balance._core import Core
from ntkmtl.balance._step import Step
from ntkmtl.graph import Cut, leaves
from ntkmtl.weighting._base import Weighting

__all__ = ["in_fixed_order", "rearranged", "require_same_tensors"]


def in_fixed_order(core: Core, step: Step, shared: list[Tensor]) -> list[Tensor]:
    """Return the shared parameters in the order that they had in the first step.

    Args:
        core: The Balancer's options and state.
        step: The step.
        shared: The shared parameters, in any order.

    Raises:
        ValueError: They are others than before, and the method keeps numbers for each entry.
    """
    memory, order = core.memory, core.order
    found: list[Tensor] | None = shared
    if order is not None and len(order) == len(shared) and all(map(operator.is_, order, shared)):
        found = order
    elif memory.shapes is not None:
        found = _placed(core, step, shared)
    if found is None:
        _require_free(core, shared)
        memory.shapes, memory.walks, found = None, {}, shared
    if memory.shapes is None:
        memory.shapes = [_shape(p) for p in found]
    core.order = found
    if len(memory.walks) < step.total:
        for task, walk in _walks(step, found, known=memory.walks).items():
            memory.walks[task] = walk
    return found


def rearranged(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], order: Sequence[Tensor]
) -> list[Tensor]:
    """Return flat gradients of parameters in another order of these parameters."""
    if parameters is order or all(map(operator.is_, parameters, order)):
        return list(gradients)
    sizes = [torch.Size(_shape(p)).numel() for p in parameters]
    place = {id(p): i for i, p in enumerate(parameters)}
    at = [place[id(p)] for p in order]
    split = [gradient.split(sizes) for gradient in gradients]
    return [torch.cat([parts[i] for i in at]) for parts in split]


def _shape(parameter: Tensor) -> list[int]:
    """Return the shape of a parameter's entries as real numbers."""
    return [*parameter.shape, 2] if parameter.is_complex() else [*parameter.shape]


def _placed(core: Core, step: Step, shared: list[Tensor]) -> list[Tensor] | None:
    """Return the shared parameters in the known order; None if they are others.

    Raises:
        ValueError: They are of the known shapes, and it cannot be told which is which.
    """
    memory, order = core.memory, core.order
    assert memory.shapes is not None
    place = {id(p): i for i, p in enumerate(order or ())}
    new = [p for p in shared if id(p) not in place]
    # Parameters are not created again while they are trained; plain tensors may be.
    if len(shared) != len(memory.shapes) or (
        order is not None and any(isinstance(p, nn.Parameter) for p in new)
    ):
        return None
    found = {place[id(p)]: p for p in shared if id(p) in place}
    if new:
        for task, walk in _walks(step, shared).items():
            known = memory.walks.get(task, [])
            if known and len(known) != len(walk):
                return None
            for i, j in zip(known, walk, strict=False):
                if found.setdefault(i, shared[j]) is not shared[j]:
                    return None
    if any(_shape(p) != memory.shapes[i] for i, p in found.items()):
        return None
    if len(found) == len(shared) == len({id(p) for p in found.values()}):
        return [found[i] for i in range(len(shared))]
    raise ValueError(
        f"{core.options.method} follows gradients entry by entry over steps, and a state was "
        "loaded: no task with a label in this batch had one before, so that nothing tells which "
        "parameters were which; give the first step after loading a batch of tasks that were there "
        "before"
    )


def _walks(
    step: Step, order: Sequence[Tensor], known: dict[int, list[int]] | None = None
) -> dict[int, list[int]]:
    """Return for each task the places of its shared parameters, as a walk from its loss meets them.

    Args:
        step: The step.
        order: The shared parameters.
        known: Tasks to leave out.
    """
    place = {id(p): i for i, p in enumerate(order)}
    local = [step.present[i] for i in step.local]
    return {
        task: [place[id(p)] for p in leaves([loss])[0] if id(p) in place]
        for task, loss in zip(local, step.losses, strict=True)
        if known is None or task not in known
    }


def _require_free(core: Core, shared: Sequence[Tensor]) -> None:
    """Raise if the method keeps numbers for each entry of the shared parameters.

    Raises:
        ValueError: It does.
    """
    options, before = core.options, core.memory.shapes
    assert before is not None
    entries = sum(torch.Size(shape).numel() for shape in before)
    if _keeps_entries(options.weighting, entries):
        raise ValueError(
            f"{options.method} follows gradients entry by entry over steps, so it needs the same "
            f"shared parameters in every step: they were {len(before)} of {entries} entries, and "
            f"are others now, {len(shared)} parameters. Name them by "
            "Balancer(..., shared=list of parameters) if labels of tasks are missing; make a new "
            "Balancer where parameters are frozen, unfrozen or replaced"
        )


def _keeps_entries(weighting: Weighting, entries: int) -> bool:
    """Whether a method keeps a number for each of this many entries."""
    return weighting.tracks_gradients or any(
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim > 0
        and value.shape[-1] == entries
        for value in weighting.state_dict().values()
    )


def require_same_tensors(core: Core, step: Step, cut: Cut, entries: int) -> None:
    """Check that a method that keeps numbers for each entry of the features reads the same ones.

    Args:
        core: The Balancer's options and state.
        step: The step.
        cut: The cut.
        entries: Number of entries of the features.

    Raises:
        ValueError: It may read others.
    """
    made = {str(entry[:2]) for part in cut.signature for entry in part}
    # Several tensors have no order of their own; of one, the parameters below it tell which it is.
    key = " ".join(sorted(made))
    if len(cut.targets) > 1:
        key = f"{key} of tasks {step.present}"
    memory = core.memory
    if memory.tensors not in (None, key) and _keeps_entries(core.options.weighting, entries):
        raise ValueError(
            f"{core.options.method} adds up numbers for each entry of the features, and this batch "
            "has labels for other tasks, which read other tensors, than the first one had: pass "
            "features=z, or set source='exact' with shared=list of parameters"
        )
    memory.tensors = key
    in_fixed_order(core, step, cut.shared)
