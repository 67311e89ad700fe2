"""What a step of a method that reads a kernel looks at first: hooks, and custom functions."""

from __future__ import annotations

import weakref
from functools import partial

from torch import Tensor

from ntkmtl.balance._core import Core
from ntkmtl.balance._step import Step
from ntkmtl.graph import has_late_hooks, is_node_held, require_repeatable

__all__ = ["look"]


def look(core: Core, step: Step) -> None:
    """Note which hooks the step must run, and check custom functions that are new.

    Args:
        core: The Balancer's options and state.
        step: The step, before anything else walks its graph.

    Raises:
        RuntimeError: A custom function or a compiled graph gives another gradient when its backward
            pass runs twice.
    """
    _note_hooks(core, step)
    custom = step.scan.custom
    if custom:
        # Functions that change what they saved may leave it alone for a gradient of 1.
        checked = core.checked.setdefault(step.scale == 1.0, weakref.WeakSet())
        require_repeatable(step.roots, step.scan.leaves, custom, checked)


def _note_hooks(core: Core, step: Step) -> None:
    known = core.known
    early = late = False
    for p in step.scan.leaves:
        early = early or bool(p._backward_hooks)
        late = late or has_late_hooks(p)
        if id(p) not in known:
            known[id(p)] = weakref.ref(p, partial(_forget, known, id(p)))
            # A hook of register_multi_grad_hook holds the nodes too, and is a hook on gradients.
            core.nodes = core.nodes or (not p._backward_hooks and is_node_held(p))
    late = late or core.nodes
    late = late and not step.parallel  # there an ordinary pass runs all hooks
    step.late, step.mixed = late and not early, late and early


def _forget(known: dict[int, weakref.ref[Tensor]], key: int, _: weakref.ref[Tensor]) -> None:
    known.pop(key, None)
