"""Balanced training with Hugging Face Accelerate: :class:`BalancedAccelerator`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ntkmtl.balance import Balancer, BalanceResult
from ntkmtl.balance._read import Losses
from ntkmtl.errors import missing_extra
from ntkmtl.integrations._shared import record_of, require_balancer

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
except ModuleNotFoundError as error:
    raise missing_extra("ntkmtl.integrations.accelerate", "accelerate", error) from error

__all__ = ["BalancedAccelerator"]


class BalancedAccelerator(Accelerator):  # type: ignore[misc]
    """An Accelerator whose ``backward`` takes the losses instead of their sum.

    Like ``Accelerator.backward`` it applies the gradient scaler and divides by the number of
    accumulation steps; all processes get the same weights. ``save_state`` and ``load_state``
    include the Balancer's state. With trackers (``log_with=...``), each step of the optimizer,
    counted from 1, logs ``loss/NAME``, ``weight/NAME`` and, if it was computed,
    ``eigenvalue/NAME``.

    Args:
        balancer: The Balancer. If its method learns parameters, pass ``balancer.parameters()`` to
            the optimizer as well.
        **settings: Arguments of ``Accelerator``.

    Attributes:
        balancer: The Balancer.

    Raises:
        TypeError: ``balancer`` is not a Balancer.
        ValueError: DeepSpeed or Megatron is used, which run the backward pass themselves.

    Example:
        >>> import torch
        >>> from ntkmtl import Balancer
        >>> accelerator = BalancedAccelerator(Balancer(), cpu=True)
        >>> net = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> net, optimizer = accelerator.prepare(net, optimizer)
        >>> y = net(torch.ones(8, 3))
        >>> out = accelerator.backward({"a": y[:, 0].square().mean(), "b": y[:, 1].square().mean()})
        >>> optimizer.step()
        >>> out.weights.shape
        torch.Size([2])
    """

    def __init__(self, balancer: Balancer, **settings: Any) -> None:
        super().__init__(**settings)
        if self.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise ValueError(
                f"{self.distributed_type.value} runs the backward pass itself; train with DDP or "
                "FSDP, or with constant weights from ntkmtl.weigh"
            )
        self.balancer = require_balancer(balancer, "balancer")
        self._progress = _Progress()
        self.register_for_checkpointing(self.balancer, self._progress)

    def backward(self, losses: Losses, **options: Any) -> BalanceResult:
        """Weigh the losses and add the gradient of their weighted sum to ``.grad``.

        Args:
            losses: As in :meth:`ntkmtl.Balancer.backward`.
            **options: Other arguments of that method: ``features``, ``counts`` and ``extra``.

        Returns:
            Weights and eigenvalues of this step.

        Raises:
            ValueError: ``scale`` or ``scaler`` is given, which the accelerator has itself.
        """
        if given := {"scale", "scaler"} & set(options):
            raise ValueError(
                f"{sorted(given)} come from the accelerator: scale is 1 / "
                "gradient_accumulation_steps, and scaler that of mixed_precision"
            )
        scale = 1 / self.gradient_accumulation_steps
        result = self.balancer.backward(losses, scaler=self.scaler, scale=scale, **options)
        if self.sync_gradients:
            self._progress.steps += 1
            if self.trackers:
                values = record_of(self.balancer, losses, result)
                numbers = {name: value.item() for name, value in values.items()}
                self.log(numbers, step=self._progress.steps)
        return result

    def after_step(self, losses: Losses | Callable[[], Losses]) -> None:
        """Give the method the losses on the same batch after ``optimizer.step()``.

        Does nothing for methods that do not need it, and between steps of the optimizer.

        Args:
            losses: The losses, or a function that computes them, called under autocast if enabled.
        """
        if self.sync_gradients and self.balancer.needs_after_step:
            with self.autocast():
                again = losses() if callable(losses) else losses
            self.balancer.after_step(again)


class _Progress:
    """The number of optimizer steps, saved in checkpoints."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = int(state["steps"])
