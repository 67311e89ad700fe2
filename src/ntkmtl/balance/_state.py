"""The state of a Balancer as a flat dict of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ntkmtl.balance._core import Core
from ntkmtl.balance._weigh import DECAY

__all__ = ["load_state", "pack", "state_of", "unpack"]

_TEXT = "json"
_TENSOR = "tensor"


def state_of(core: Core) -> dict[str, Tensor]:
    """Return everything that the next step depends on besides its input."""
    options, correction = core.options, core.correction
    return pack(
        {
            "method": options.method,
            "source": f"{options.source}, {options.pooling}",
            "memory": core.memory.state(),
            "probe": None if options.probe is None else options.probe.state_dict(),
            "correction": None if correction is None else correction.state_dict(),
            "weighting": options.weighting.state_dict(),
        }
    )


def load_state(core: Core, state: Mapping[str, Tensor]) -> None:
    """Restore a state from :func:`state_of`.

    Raises:
        TypeError: The state is not a dict.
        ValueError: The state is damaged, or of another method, source or other tasks.
    """
    found, options = unpack(state), core.options
    expected = {"method", "source", "memory", "probe", "correction", "weighting"}
    if set(found) != expected:
        raise ValueError(
            f"this is not a state of a Balancer: it holds {sorted(found)}, expected "
            f"{sorted(expected)}"
        )
    if found["method"] != options.method:
        raise ValueError(f"the state is of method {found['method']!r}, this is {options.method!r}")
    memory, entries = found["memory"], set(core.memory.state())
    if not isinstance(memory, Mapping) or set(memory) != entries:
        holds = sorted(memory) if isinstance(memory, Mapping) else type(memory)
        raise ValueError(
            f"this is not a state of this version's Balancer: its memory holds {holds}, expected "
            f"{sorted(entries)}"
        )
    own = f"{options.source}, {options.pooling}"
    averaged = memory["log_total"] is not None or memory["average"] is not None
    if averaged and found["source"] != own:
        raise ValueError(
            f"the state averages the kernel of {found['source']}, this reads that of {own}"
        )
    names, mine = memory["names"], core.memory.names
    if names is not None and mine is not None and tuple(names) != mine:
        raise ValueError(f"the state has tasks {list(names)}, this {list(mine)}")
    if names is not None and mine is None:
        core.set_tasks(tuple(names))
    parts = {"probe": options.probe, "correction": core.correction}
    for name, part in parts.items():
        if (part is None) != (found[name] is None):
            raise ValueError(
                f"the state is {'without' if found[name] is None else 'with'} a {name}, this "
                f"is {'without' if part is None else 'with'} one: source, trunk and corrected "
                "must be as they were"
            )
    options.weighting.load_state_dict(found["weighting"])
    if (known := core.memory.names) is not None:
        # A state from before the first step has no tasks, and the next batch may have labels for
        # only some of them.
        options.weighting.prepare(len(known), torch.device("cpu"))
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(found[name])
    core.memory.load(memory, options.ema or DECAY)
    core.order = None


def pack(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert a nested state to one flat dict of tensors, as safetensors requires.

    Tensors are stored under names joined by dots. The structure and all other values are stored as
    one JSON string, as a tensor of bytes.

    Raises:
        TypeError: The state holds something that cannot be stored.

    Example:
        >>> packed = pack({"step": 3, "method": {"scores": torch.ones(2), "last": None}})
        >>> sorted(packed), unpack(packed)["method"]["last"]
        (['json', 'method.scores'], None)
    """
    tensors: dict[str, Tensor] = {}

    def visit(prefix: str, value: Any) -> Any:
        start = f"{prefix}." if prefix else ""
        if isinstance(value, Tensor):
            while prefix in tensors or prefix == _TEXT:  # keys may contain dots themselves
                prefix += "_"
            tensors[prefix] = value.detach().clone().contiguous()
            return {_TENSOR: prefix}
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise TypeError(f"keys of a state must be strings, found {list(value)} in {prefix}")
            if set(value) == {_TENSOR} and isinstance(value[_TENSOR], str):
                raise TypeError(f"a string cannot stand alone under the key {_TENSOR!r}: {prefix}")
            return {key: visit(f"{start}{key}", inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [visit(f"{start}{i}", inner) for i, inner in enumerate(value)]
        if not isinstance(value, str | int | float | None):
            raise TypeError(
                f"a state holds tensors, numbers, strings, None, and lists and dicts of them; "
                f"found {type(value)} in {prefix}"
            )
        return value

    text = json.dumps(visit("", state), sort_keys=True).encode()
    tensors[_TEXT] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tensors


def unpack(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the nested state from the result of :func:`pack`, with tensors copied.

    Raises:
        TypeError: ``state`` is not a dict.
        ValueError: ``state`` is damaged, or not the state of a Balancer.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"a state of a Balancer is a dict of tensors, found {type(state)}")
    if _TEXT not in state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"this is not a state of a Balancer: it holds {sorted(map(str, state))}, expected "
            f"tensors and the entry {_TEXT!r}"
        )
    try:
        whole = json.loads(bytes(state[_TEXT].cpu().tolist()).decode())
    except (ValueError, TypeError) as error:
        raise ValueError(f"the entry {_TEXT!r} of the state cannot be read: {error}") from error
    left = set(state) - {_TEXT}

    def visit(value: Any) -> Any:
        if isinstance(value, list):
            return [visit(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if set(value) != {_TENSOR} or not isinstance(value[_TENSOR], str):
            return {key: visit(inner) for key, inner in value.items()}
        name = value[_TENSOR]
        if name not in left:
            raise ValueError(f"this is not a whole state of a Balancer: it lacks {name!r}")
        left.remove(name)
        return state[name].detach().clone()

    nested = visit(whole)
    if left or not isinstance(nested, dict):
        raise ValueError(f"this is not a state of a Balancer: nothing reads {sorted(left)}")
    return nested
