"""Devices, precisions and compilation."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems.base import MultiTaskModel, Precision

__all__ = [
    "Arithmetic",
    "Device",
    "DeviceError",
    "Evaluated",
    "buffers_kept",
    "choose_device",
    "compile_heads",
    "compiled",
    "to_device",
]

Device = Literal["auto", "cpu", "cuda"]
"""Device to train on: ``"auto"`` takes a GPU if there is one."""

LEAST_SCALE = 2.0**-14
"""Scale of fp16's gradients below which non-finite gradients do not come from overflow."""


class DeviceError(ValueError):
    """A device is missing, or cannot do what a run asks for."""


def choose_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        DeviceError: The name is unknown, or the device is missing.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name not in get_args(Device):
        raise DeviceError(f"device must be one of {', '.join(get_args(Device))}. Found {name!r}.")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise DeviceError(
            "device is 'cuda', and torch sees no GPU; use 'cpu' or 'auto', or install a torch that "
            f"was built for the GPU (this one is {torch.__version__})"
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def to_device(value: Any, device: torch.device) -> Any:
    """Return a batch with all its tensors on a device: nested tuples, lists, dicts, dataclasses.

    Example:
        >>> to_device((torch.ones(2), {"y": torch.zeros(1)}), torch.device("cpu"))
        (tensor([1., 1.]), {'y': tensor([0.])})
    """
    if device.type == "cpu":
        return value
    if hasattr(value, "to") and callable(value.to):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(part, device) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(part, device) for part in value)
    if isinstance(value, Mapping):
        return {key: to_device(part, device) for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(
            value, **{name: to_device(getattr(value, name), device) for name in fields}
        )
    return value


class Arithmetic:
    """Precision of forward passes, with the gradient scaler that it may need.

    Args:
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        device: Device of the run.

    Attributes:
        scaler: The gradient scaler of fp16, None for the others.

    Raises:
        DeviceError: The device cannot compute in it.
        ValueError: There is no such precision.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        if precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise ValueError(f"precision must be one of {known}. Found {precision!r}.")
        self.precision = precision
        self.device = device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            precision
        ]
        self.scaler: torch.amp.GradScaler | None = None
        if precision == "fp32":
            return
        _require_precision(self.dtype, device)
        if precision == "fp16":
            self.scaler = torch.amp.GradScaler(device.type)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def full(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return outputs in fp32, the precision of losses."""
        if self.precision == "fp32":
            return list(outputs)
        return [output.float() if output.is_floating_point() else output for output in outputs]

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take a step of the optimizer; gradients are unscaled already.

        Returns:
            Whether it was taken: the scaler leaves out steps whose gradients overflowed.

        Raises:
            FloatingPointError: Gradients are not finite at any scale.
        """
        if self.scaler is None:
            optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        after = self.scaler.get_scale()
        if after < LEAST_SCALE:
            raise FloatingPointError(
                f"gradients in fp16 are not finite even at a scale of {after:g}: the training has "
                "diverged, or the network leaves fp16's range. Lower the learning rate, or use bf16"
            )
        return bool(after >= before)


def _require_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a precision that a device lacks."""
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        # Emulated bfloat16 is slower than float32.
        if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise DeviceError(
                f"{torch.cuda.get_device_name(device)} does not compute in {name}; "
                "use precision 'fp16' or 'fp32'"
            )
        return
    try:
        with torch.autocast(device.type, dtype):
            x = torch.ones(2, 2, requires_grad=True)
            torch.nn.functional.linear(x, x).sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        raise DeviceError(
            f"this {device.type} does not compute in {name} ({error}); use precision 'fp32'"
        ) from error


class Evaluated(MultiTaskModel):
    """A network on a device, for problems that evaluate batches and outputs on the CPU."""

    def __init__(self, model: MultiTaskModel, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.training = model.training

    def represent(self, batch: Any) -> Tensor | list[Tensor]:
        """Return the representation of a batch from the CPU, on the device."""
        return self.model.represent(to_device(batch, self.device))

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return the outputs on the CPU."""
        return [output.cpu() for output in self.model.predict(features)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the network's own."""
        return self.model.shared_parameters()


_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function, device: torch.device) -> _Function:
    """Return a function compiled.

    Raises:
        DeviceError: There is no compiler.
    """
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise DeviceError(
            "torch.compile needs a C++ compiler on the CPU, and there is no g++ or clang++; "
            "install one, or train without compile"
        )
    return cast("_Function", torch.compile(function))


@contextlib.contextmanager
def buffers_kept(compiles: bool) -> Iterator[None]:
    """Let compiled backward passes keep the buffers that another backward pass needs.

    By default a compiled backward pass reuses that memory, and a kernel takes several passes.
    What is compiled within is kept apart on disk from what plain training compiles.

    Args:
        compiles: Whether anything is compiled; if not, nothing changes.
    """
    if not compiles:
        yield
        return
    from torch._functorch import config

    from ntkmtl.graph import allow_retained_backward

    with config.patch(donated_buffer=config.donated_buffer):
        allow_retained_backward()
        yield


def compile_heads(model: MultiTaskModel) -> None:
    """Compile each head by itself: gradients of a joint graph could not be separated by task.

    Raises:
        ValueError: The network does not keep its heads in ``heads``.
    """
    heads = getattr(model, "heads", None)
    if not isinstance(heads, nn.ModuleList):
        raise ValueError(
            f"compile needs the heads one by one: {type(model).__name__}.heads must be an "
            f"nn.ModuleList, found {type(heads).__name__}"
        )
    for head in heads:
        head.compile()
