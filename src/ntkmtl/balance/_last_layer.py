"""Input and output of the trunk's last layer in the last forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LastLayer"]


class LastLayer:
    """Remembers input and output of the trunk's last linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"last_layer must be a torch.nn.Linear, found {type(layer)}")
        if layer.weight.is_complex():
            raise ValueError(
                "last_layer has complex weights, whose kernel is no product of two real ones; use "
                "source='exact', or a method that reads the representation alone"
            )
        self._bias = layer.bias is not None
        self._seen: tuple[Tensor, Tensor, int] | None = None
        layer.register_forward_hook(self._remember, with_kwargs=True)

    def _remember(
        self, module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> None:
        if torch.is_grad_enabled():
            seen = args[0] if args else named["input"]
            self._seen = (seen.detach(), output, output._version)

    def __getstate__(self) -> dict[str, Any]:
        # The layer, which holds this object in a hook, must stay copyable; tensors of a graph are
        # not.
        return {**vars(self), "_seen": None}

    def output(self) -> Tensor:
        """Return the layer's output in the last forward pass with gradients."""
        if self._seen is None:
            raise ValueError("last_layer has not run with gradients since the Balancer was made")
        _, output, version = self._seen
        if output._version != version:
            raise ValueError(
                "the output of last_layer was changed in place (an activation with inplace=True "
                "after it?), so it cannot be differentiated; set inplace=False"
            )
        return output

    def kernel(self) -> tuple[Tensor, float]:
        """Return a and c such that the layer's own kernel between samples is a a^T + c.

        a is the layer's input, shape (B, d); c is 1 for a layer with bias, else 0.
        """
        assert self._seen is not None
        inputs = self._seen[0]
        if inputs.ndim != 2:
            raise ValueError(
                f"last_layer must be applied to samples of shape (B, d), found "
                f"{tuple(inputs.shape)}"
            )
        return inputs, 1.0 if self._bias else 0.0
