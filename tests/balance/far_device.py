"""A simulated device: tensors that claim to be on it, and a counter of transfers to the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_MIXED = {"aten.index.Tensor", "aten._to_copy.default", "aten.copy_.default"}
"""Operations that take tensors of two devices."""


class Far(Tensor):
    """A tensor that says it is on ``DEVICE``; its numbers are kept on the CPU."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        return Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
            requires_grad=near.requires_grad,
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:
        return f"Far({self.near})"

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        # Numbers do not pass dispatch on their way to a device.
        return Far(torch.tensor(data, dtype=dtype or self.dtype))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = str(func)
    flat, _ = tree_flatten((args, kwargs))
    far = [value for value in flat if isinstance(value, Far)]
    near = [v for v in flat if isinstance(v, Tensor) and not isinstance(v, Far) and v.ndim > 0]
    if far and near and name not in _MIXED:
        shapes = [tuple(v.shape) for v in near]
        raise AssertionError(f"{name} mixes devices: tensors of shapes {shapes} are on the CPU")
    asked = kwargs.get("device")
    stays = bool(far)
    if asked is not None:
        stays = torch.device(asked) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "aten._to_copy.default" and not far and not stays:
        return func(*args, **kwargs)
    found = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    if name.split(".")[1].endswith("_") and far:
        return args[0]  # in place
    return tree_map(_wrapped, found) if stays else found


def _bare(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


def _wrapped(value: Any) -> Any:
    return Far(value) if isinstance(value, Tensor) and not isinstance(value, Far) else value


class Waits(TorchDispatchMode):
    """Counts where numbers are brought from the device, by what waited."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        if any(isinstance(value, Far) for value in flat):
            name = str(func)
            to = kwargs.get("device")
            leaves = (
                name == "aten._to_copy.default" and to is not None and torch.device(to) != DEVICE
            )
            if leaves or name in ("aten._local_scalar_dense.default", "aten.nonzero.default"):
                self.found[name] += 1
        return dispatch(func, args, kwargs)


def send(module: nn.Module) -> None:
    """Bring a module's parameters to the device."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(Far(parameter.detach())))
