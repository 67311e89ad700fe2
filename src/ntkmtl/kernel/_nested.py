"""Nested tuples, lists and dicts that hold tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["leaves_of", "map_leaves", "tensors_in"]

_DICTS = (dict, OrderedDict, defaultdict)


def _is_sequence(kind: type) -> bool:
    return kind in (list, tuple) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def leaves_of(value: Any) -> Iterator[Any]:
    """Yield all entries of nested lists, tuples, named tuples and dicts, in order.

    Objects of any other class, subclasses of these included, count as entries.

    Example:
        >>> list(leaves_of([1, {"a": (2, "b")}]))
        [1, 2, 'b']
    """
    if type(value) in _DICTS:
        value = list(value.values())
    if not _is_sequence(type(value)):
        yield value
        return
    for part in value:
        yield from leaves_of(part)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Return the same nested structure with a function applied to each entry.

    Example:
        >>> map_leaves(lambda number: 10 * number, [1, {"a": (2, 3)}])
        [10, {'a': (20, 30)}]
    """
    kind = type(value)
    if kind in _DICTS:
        found = copy.copy(value)
        found.update((key, map_leaves(function, part)) for key, part in value.items())
        return found
    if not _is_sequence(kind):
        return function(value)
    parts = [map_leaves(function, part) for part in value]
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested sequences and mappings of any class, in order.

    Example:
        >>> import torch
        >>> [t.shape for t in tensors_in((torch.ones(2), {"a": [torch.ones(3)], "b": 1}))]
        [torch.Size([2]), torch.Size([3])]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
