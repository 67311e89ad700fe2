"""The trunk's last forward pass, remembered so that it can be repeated with other parameters."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl._device import default_device
from ntkmtl.graph import Features
from ntkmtl.kernel._nested import tensors_in

__all__ = ["RememberInputs", "TrunkCall"]


class _Method(nn.Module):
    """Calls a method of a module, so that ``functional_call`` can replace its parameters."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.module if self.method == "forward" else getattr(self.module, self.method)
        return call(*args, **kwargs)


@dataclass
class TrunkCall:
    """One forward pass of the trunk, with everything needed to repeat it.

    Create it right before the pass. It stores the random states (so that dropout draws the same
    masks), the autocast state and copies of the buffers; the inputs are not copied.

    Args:
        module: The trunk, or the model that has the trunk as a method.
        args: Positional inputs.
        kwargs: Keyword inputs.
        method: Name of the method that runs the trunk.
        positions: Which of the returned tensors :meth:`run` returns; None for all.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        >>> x = torch.ones(1, 2)
        >>> call = TrunkCall(trunk, (x,))
        >>> z, state = trunk(x), torch.get_rng_state()
        >>> (again,) = call.run({})
        >>> torch.equal(again, z), torch.equal(torch.get_rng_state(), state)
        (True, True)
    """

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    method: str = "forward"
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        # Run the original of a compiled module: replaced parameters would trigger a recompilation.
        self.module = getattr(self.module, "_orig_mod", self.module)
        places = {tensor.device for tensor in tensors_in((self.args, dict(self.kwargs)))}
        places |= {p.device for p in self.module.parameters()}
        self._devices = sorted((d for d in places if d.type not in ("cpu", "meta")), key=str)
        self._random = _random_states(self._devices)
        kinds = sorted({"cpu", *(device.type for device in self._devices)})
        self._autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in kinds
        }
        self._default = default_device()
        self._buffers = {name: b.detach().clone() for name, b in self.module.named_buffers()}
        self._versions = [(t, t._version) for t in tensors_in((self.args, dict(self.kwargs)))]

    @property
    def autocast(self) -> bool:
        """Whether the pass runs in mixed precision."""
        return any(enabled for enabled, _ in self._autocast.values())

    def run(self, parameters: Mapping[str, Tensor], *, autocast: bool = True) -> tuple[Tensor, ...]:
        """Run the trunk again with some parameters replaced, without side effects.

        Args:
            parameters: New values by the names in ``module``; the others keep their values.
            autocast: False to run a mixed-precision pass in full precision.

        Returns:
            The tensors that the trunk returns, without a graph; those at ``positions`` if given.

        Raises:
            ValueError: An input was changed in place since.
        """
        if any(tensor._version != version for tensor, version in self._versions):
            raise ValueError(
                "an input of the trunk was changed in place after the forward pass, so it cannot "
                "be run again; set inplace=False in its first layer, or give it a copy"
            )
        exchanged = {
            f"module.{name}": tensor
            for name, tensor in (
                *parameters.items(),
                # Copied again, as batch norm writes to them.
                *((name, buffer.clone()) for name, buffer in self._buffers.items()),
            )
        }
        now = _random_states(self._devices)
        with ExitStack() as stack:
            stack.callback(_set_random_states, now)
            stack.enter_context(torch.no_grad())
            if default_device() != self._default:
                # For tensors that the trunk creates without a device.
                stack.enter_context(self._default)
            stack.enter_context(_plain_kernels())
            for kind, (enabled, dtype) in self._autocast.items():
                stack.enter_context(
                    torch.autocast(
                        kind, dtype=dtype, enabled=enabled and autocast, cache_enabled=False
                    )
                )
            _set_random_states(self._random)
            runner = _Method(self.module, self.method)
            output = torch.func.functional_call(runner, exchanged, self.args, dict(self.kwargs))
        found = tuple(tensors_in(output))
        return found if self.positions is None else tuple(found[i] for i in self.positions)


_States = list[tuple[torch.device | None, Tensor]]


def _random_states(devices: Sequence[torch.device]) -> _States:
    others: _States = [(d, torch.get_device_module(d).get_rng_state(d)) for d in devices]
    return [(None, torch.get_rng_state()), *others]


def _set_random_states(states: _States) -> None:
    for device, state in states:
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Run modules as in training: without fused inference kernels and without compilation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it is slow
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class RememberInputs:
    """Remembers the trunk's last forward pass with gradients, so that it can be repeated.

    A trunk that is a module is observed by hooks; the calling code does not change. For a trunk
    that is a method of a model, call this object instead of the method.

    Args:
        module: The trunk, or the model that has the trunk as a method.
        method: Name of the method that runs the trunk.

    Raises:
        TypeError: ``module`` is not a module, or has no such method.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Linear(2, 3)
        >>> remember = RememberInputs(trunk)
        >>> z = trunk(torch.ones(4, 2))
        >>> (again,) = remember.call(Features.of(z, ["a"])).run({})
        >>> torch.equal(again, z)
        True
    """

    def __init__(self, module: nn.Module, method: str = "forward") -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"the trunk must be a torch.nn.Module, found {type(module)}")
        if not callable(getattr(module, method, None)):
            raise TypeError(f"{type(module)} has no method {method!r} that runs the trunk")
        self.module = module
        self.method = method
        self._entered: TrunkCall | None = None
        self._seen: tuple[TrunkCall, list[weakref.ref[Tensor]]] | None = None
        if method == "forward":
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the trunk and remember the pass."""
        if self.method == "forward":
            return self.module(*args, **kwargs)
        self._enter(self.module, args, kwargs)
        output = getattr(self.module, self.method)(*args, **kwargs)
        self._leave(self.module, args, output)
        return output

    def __getstate__(self) -> dict[str, Any]:
        # The remembered pass belongs to one graph and cannot be copied.
        return {**vars(self), "_entered": None, "_seen": None}

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A pass without gradients is an evaluation or a probe.
        self._entered = (
            TrunkCall(module, args, kwargs, self.method) if torch.is_grad_enabled() else None
        )

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._entered is not None:
            # Weak references, so that the graph is freed as usual.
            self._seen = self._entered, [weakref.ref(t) for t in tensors_in(output)]
            self._entered = None

    def release(self) -> None:
        """Forget the last pass and its inputs."""
        self._seen = None

    def call(self, features: Features) -> TrunkCall:
        """Return the last pass, which must have returned the features.

        Args:
            features: The representation, as the trunk returned it.

        Raises:
            ValueError: There was no pass, or it did not return these tensors.
        """
        if self._seen is None:
            raise ValueError(
                "the trunk has not run with gradients since its last probe"
                + (
                    ""
                    if self.method == "forward"
                    else f"; call the RememberInputs object in place of .{self.method}"
                )
            )
        call, references = self._seen
        returned = [reference() for reference in references]
        positions = []
        for output in features.outputs:
            place = next((i for i, t in enumerate(returned) if t is output), None)
            if place is None:
                raise ValueError(
                    "the features are not what the trunk returned in its last forward pass. The "
                    "trunk must be the module whose output is the features, run once per step; "
                    "where something comes between, put it into the trunk"
                )
            positions.append(place)
        call.positions = tuple(positions)
        return call
