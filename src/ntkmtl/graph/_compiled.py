"""Several backward passes through graphs made by ``torch.compile``.

The backward pass of a compiled graph may overwrite tensors that the forward pass saved ("donated
buffers"). A second backward pass then gives wrong gradients. Whether torch raises an error depends
on a switch that is read when the graph is compiled and again when it runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ntkmtl.graph._engine import differentiate, leaves
from ntkmtl.graph._walk import node_of

__all__ = ["allow_retained_backward", "require_repeatable"]

_TAG = "retained-backward"
_NAME = "CompiledFunctionBackward"
_TOLERANCE = 0.02
"""Relative difference allowed between two passes: a changed order of sums stays below it."""

_checked: weakref.WeakSet[type] = weakref.WeakSet()
"""Node classes (one per compiled graph) whose second backward pass was checked and is right."""


def allow_retained_backward() -> None:
    """Switch off donated buffers for everything that is compiled from now on.

    torch has no public switch for this. The key of torch's compile cache on disk does not include
    the switch, so a tag is added to the key: otherwise a cached backward pass that overwrites its
    buffers could be loaded here.
    """
    try:
        from torch._functorch import config
    except ImportError:
        return
    if getattr(config, "donated_buffer", False):
        config.donated_buffer = False
    settings = getattr(torch.compiler, "config", None)
    tag = getattr(settings, "cache_key_tag", None)
    if settings is not None and isinstance(tag, str) and _TAG not in tag:
        settings.cache_key_tag = f"{tag} {_TAG}".strip()


def require_repeatable(losses: Sequence[Tensor]) -> None:
    """Check that two backward passes give the same gradients, once for each compiled graph.

    Args:
        losses: k losses. Their graph is retained.

    Raises:
        RuntimeError: The second pass gives different gradients.
    """
    fresh = {part for part in _compiled_parts(losses) if part not in _checked}
    if not fresh:
        return
    parameters = list(leaves(losses)[0])
    ones = [torch.ones_like(loss) for loss in losses]
    once, twice = (differentiate(losses, parameters, ones, retain=True) for _ in range(2))
    for a, b in zip(once, twice, strict=True):
        if a is None or b is None or a.layout is not torch.strided:
            continue
        first, second = (torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in (a, b))
        apart = torch.linalg.vector_norm(first - second)
        if not bool(apart <= _TOLERANCE * torch.linalg.vector_norm(first)):
            raise RuntimeError(
                "a part of the model was compiled for a single backward pass, before this Balancer "
                "existed, and its second gradients are wrong: make the Balancer before the first "
                "forward pass, or call torch.compiler.reset() after making it; a method that reads "
                "losses only does without"
            )
    _checked.update(fresh)


def _compiled_parts(losses: Sequence[Tensor]) -> set[type]:
    found: set[type] = set()
    stack: list[Any] = [node_of(loss) for loss in losses]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == _NAME:
            found.add(type(node))
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return found
