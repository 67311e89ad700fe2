"""Several backward passes through compiled graphs and custom functions.

The backward pass of a compiled graph may overwrite tensors that the forward pass saved ("donated
buffers"). A second backward pass then gives wrong gradients. Whether torch raises an error depends
on a switch that is read when the graph is compiled and again when it runs. The backward pass of a
custom function may do the same, and nothing tells.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ntkmtl.graph._engine import differentiate

__all__ = ["allow_retained_backward", "require_repeatable"]

_TAG = "retained-backward"
_NAME = "CompiledFunctionBackward"
_TOLERANCE = 0.02
"""Relative difference allowed between two passes: a changed order of sums stays below it."""

_OF_TORCH = ("torch.nn.", "torch.distributed.", "torch.utils.")
"""Modules whose custom functions are known to be right, or communicate with other processes."""

_COMPILED = (
    "a part of the model was compiled for a single backward pass, before this Balancer "
    "existed, and its second gradients are wrong: make the Balancer before the first "
    "forward pass, or call torch.compiler.reset() after making it; a method that reads "
    "losses only does without"
)
_CUSTOM = (
    "the backward pass of a custom function ({}) gives another gradient when it runs twice, as it "
    "changes what it saved, or draws random numbers; this method runs it several times. Let it "
    "compute new tensors (saved * gradient instead of saved.mul_(gradient)), or use a method that "
    "reads losses only. No .grad was changed"
)

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


def require_repeatable(
    losses: Sequence[Tensor],
    parameters: Sequence[Tensor],
    kinds: Iterable[type],
    checked: weakref.WeakSet[type],
) -> None:
    """Check once for each compiled graph and custom function that two passes give the same.

    Args:
        losses: Scalars. Their graph is retained.
        parameters: The leaves of their graph.
        kinds: The classes of the custom functions and compiled graphs among its nodes.
        checked: Custom functions that were checked and are right; new ones are added.

    Raises:
        RuntimeError: The second pass gives different gradients.
    """
    compiled = [kind for kind in kinds if kind.__name__ == _NAME and kind not in _checked]
    custom = [kind for kind in kinds if kind.__name__ != _NAME and kind not in checked]
    custom = [kind for kind in custom if not _module(kind).startswith(_OF_TORCH)]
    if not compiled and (not custom or any(map(_is_distributed, kinds))):
        return
    ones = [torch.ones_like(loss) for loss in losses]
    once = differentiate(losses, parameters, ones, retain=True)
    # A function may return the very tensor that its next backward pass changes.
    once = tuple([None if g is None else g.clone() for g in once])
    twice = differentiate(losses, parameters, ones, retain=True)
    if not all(map(_agree, once, twice)):
        raise RuntimeError(_COMPILED if compiled else _CUSTOM.format(_listed(custom)))
    _checked.update(compiled)
    checked.update(custom)


def _module(kind: type) -> str:
    """Return the module of the custom function that a node's class was made for."""
    return str(getattr(kind, "_forward_cls", kind).__module__)


def _is_distributed(kind: type) -> bool:
    """Whether a node belongs to sharded parameters, which an additional pass would gather."""
    return _module(kind).startswith("torch.distributed.")


def _listed(kinds: Sequence[type]) -> str:
    return ", ".join(sorted(kind.__name__.removesuffix("Backward") for kind in kinds))


def _agree(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two gradients are the same up to the order of sums."""
    if a is None or b is None or a.layout is not torch.strided:
        return True
    first, second = (torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in (a, b))
    apart = torch.linalg.vector_norm(first - second)
    return bool(apart <= _TOLERANCE * torch.linalg.vector_norm(first))
