"""Balanced training with Lightning: :class:`BalancedModule`, a mixin of a ``LightningModule``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ntkmtl.balance import Balancer, BalanceResult
from ntkmtl.balance._read import Losses, in_order, read_loss, task_names
from ntkmtl.errors import missing_extra
from ntkmtl.integrations._shared import (
    holding,
    record_of,
    require_balancer,
    require_same_sum,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    # No base class, so that the mixin works with both lightning and pytorch_lightning.
    _Base = object
    if find_spec("lightning") is None and find_spec("pytorch_lightning") is None:
        raise missing_extra(
            "ntkmtl.integrations.lightning", "lightning", ImportError(name="lightning")
        )

__all__ = ["BalancedModule"]

_REMEDY = (
    "give further terms as self.balance(losses, extra=...), factors as Balancer(priorities=...), "
    "and call self.balance once before each backward pass"
)


class BalancedModule(_Base):
    """Mixin for a LightningModule that balances its losses.

    Write ``class Net(BalancedModule, LightningModule)``, set ``self.balancer``, and return
    ``self.balance(losses)`` from ``training_step``. Optimization may be automatic, with
    accumulation, clipping, any precision and DDP; or manual, with ``self.manual_backward(loss)`` of
    the result of ``self.balance``. Every step logs ``loss/NAME``, ``weight/NAME`` and, if it was
    computed, ``eigenvalue/NAME``.

    The mixin uses the hooks ``optimizer_step``, ``on_train_start``, ``on_train_batch_start``,
    ``on_train_batch_end``, ``on_train_epoch_end``, ``on_save_checkpoint`` and
    ``on_load_checkpoint``. They hold the weights while an optimizer calls its closure several
    times, inform methods about steps and epochs, and save the Balancer's state in checkpoints. A
    module that overrides one of them must call ``super()``.

    Attributes:
        balancer: The Balancer. If its method learns parameters, pass ``balancer.parameters()`` to
            the optimizer as well.

    Raises:
        TypeError: A subclass names ``LightningModule`` before the mixin, whose methods would then
            never be called.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from ntkmtl import Balancer
        >>> class Net(BalancedModule, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk = torch.nn.Linear(3, 4)
        ...         self.heads = torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        ...         self.balancer = Balancer()
        ...
        ...     def compute_losses(self, batch):
        ...         z = self.trunk(batch[0])
        ...         return [(h(z) - y).square().mean() for h, y in zip(self.heads, batch[1:])]
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> x, y = torch.ones(8, 3), torch.ones(8, 1)
        >>> Net().balance(Net().compute_losses((x, y, y))).shape
        torch.Size([])
    """

    balancer: Balancer
    _pending: tuple[Losses, dict[str, Any], Tensor | None] | None = None
    _evaluations: int | None = None
    _seen_step: int = 0
    _ended_epochs: int | None = None  # of which the method knows; None if nothing says so
    _batch: Any = None
    _last: BalanceResult | None = None  # of this batch's last backward pass
    _last_scale: float = 1.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(BalancedModule)]
        if any(kind.__name__ == "LightningModule" for kind in before):
            raise TypeError(
                f"{cls.__name__} names LightningModule before BalancedModule, so the losses would "
                f"not be balanced; write class {cls.__name__}(BalancedModule, LightningModule)"
            )

    def compute_losses(self, batch: Any) -> Losses:
        """Return the losses of a batch, as :meth:`ntkmtl.Balancer.backward` takes them.

        Override it if the module has no ``training_step``, or if the method needs the losses again
        after the step.

        Args:
            batch: A batch of the data loader, as ``training_step`` receives it.

        Raises:
            NotImplementedError: The module does not override it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs compute_losses(batch): a training_step of its own that "
            "returns self.balance(losses) is enough, unless the method needs after_step"
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return :meth:`balance` of the losses of a batch; a module may have its own instead.

        Args:
            batch: A batch of the data loader.
            batch_idx: Its position, which is not used.
        """
        return self.balance(self.compute_losses(batch))

    def balance(self, losses: Losses, **options: Any) -> Tensor | None:
        """Store the losses for the backward pass, and return their plain sum.

        Args:
            losses: As in :meth:`ntkmtl.Balancer.backward`.
            **options: Other arguments of that method: ``features``, ``counts`` and ``extra``;
                ``scale`` under manual optimization only.

        Returns:
            The loss to return from ``training_step`` or to pass to ``manual_backward``. If no task
            has a label: ``extra``, or None without one, so that Lightning skips the batch. If
            gradients are disabled, as in validation, the losses are not stored.
        """
        require_balancer(getattr(self, "balancer", None), "self.balancer")
        names, _ = task_names(losses)
        pairs = zip(names, in_order(losses, names), strict=True)
        trains = torch.is_grad_enabled()
        found = [read_loss(loss, name, needs_gradient=trains) for name, loss in pairs]
        means = [known[0] for known in found if known is not None]
        total = sum(means[1:], start=means[0]) if means else options.get("extra")
        if trains:
            self._pending = losses, options, total
        return total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the balanced backward pass instead of that of the sum; Lightning calls it.

        Args:
            loss: What :meth:`balance` returned, divided and scaled by Lightning.
            *args: Not used.
            **kwargs: Not used.

        Raises:
            RuntimeError: :meth:`balance` was not called before.
            ValueError: ``loss`` is not the result of the last :meth:`balance`, DDP uses
                ``static_graph=True``, ``scale`` is given under automatic optimization, or the
                optimizer evaluates the losses several times but the method's weights cannot be
                held.
        """
        if self._pending is None:
            raise RuntimeError(
                "there are no losses to balance: training_step must return self.balance(losses), "
                "once for every backward pass"
            )
        if getattr(self.trainer.model, "static_graph", False):
            raise ValueError(
                "DDP with static_graph=True counts on a backward pass from what training_step "
                "returned, where the losses themselves are taken; leave static_graph out"
            )
        if self._evaluations and not self.balancer.can_hold:
            with self.balancer.hold():  # raises, and says why
                pass
        if self._evaluations is not None:
            self._evaluations += 1
        (losses, options, total), self._pending = self._pending, None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if total is not None:
            # Lightning divides by the number of accumulated batches, and a scaler multiplies.
            factors = self.automatic_optimization + (scaler is not None)
            require_same_sum(loss, total, factors, _REMEDY)
        if self.automatic_optimization:
            if "scale" in options:
                raise ValueError(
                    "scale is for manual optimization; here it is 1 / accumulate_grad_batches"
                )
            # Lightning has divided its loss by this number.
            options = {"scale": 1 / self.trainer.accumulate_grad_batches, **options}
        result = self.balancer.backward(losses, scaler=scaler, **options)
        self._last, self._last_scale = result, options.get("scale", 1.0)
        values = record_of(self.balancer, losses, result)
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    # ------------------------------------------------------------------ hooks

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run an optimizer step, in which all evaluations use the weights of the first.

        The optimizer gets the weighted sum of the losses from its closure, the function whose
        gradient it sees. A line search compares values of this function.

        Args:
            epoch: As Lightning passes it.
            batch_idx: As Lightning passes it.
            optimizer: As Lightning passes it.
            optimizer_closure: The function that computes losses and gradients.
        """

        def evaluate() -> Any:
            assert optimizer_closure is not None
            self._last = None
            plain = optimizer_closure()
            return plain if self._last is None else self._last.total * self._last_scale

        self._evaluations = 0
        closure = None if optimizer_closure is None else evaluate
        try:
            with holding(self.balancer):
                super().optimizer_step(epoch, batch_idx, optimizer, closure)
        finally:
            self._evaluations = None

    def on_train_start(self) -> None:
        """Count steps and epochs from where training starts or resumes."""
        super().on_train_start()
        self._seen_step = self.trainer.global_step
        epoch = self.trainer.current_epoch
        if self._ended_epochs is not None and self._ended_epochs < epoch:
            # The last batch of an epoch wrote the checkpoint: on_train_epoch_end is left out.
            self.balancer.end_epoch()
        self._ended_epochs = epoch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        """Remember the batch, for a checkpoint written before the method is informed.

        Args:
            batch: The batch.
            batch_idx: As Lightning passes it.

        Returns:
            What ``LightningModule.on_train_batch_start`` returns.
        """
        self._batch = batch
        return super().on_train_batch_start(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Inform the method if the optimizer has made a step; Lightning calls it.

        Args:
            outputs: As Lightning passes them.
            batch: The batch, whose losses are computed again if the method needs them.
            batch_idx: As Lightning passes it.

        Raises:
            RuntimeError: The optimizer has made a step, but the losses of :meth:`balance` got no
                balanced backward pass.
        """
        super().on_train_batch_end(outputs, batch, batch_idx)
        stepped = self.trainer.global_step != self._seen_step
        pending, self._pending = self._pending is not None, None
        # Under automatic optimization, a training_step that returns None skips the batch.
        if stepped and pending and (outputs or not self.automatic_optimization):
            raise RuntimeError(
                "the optimizer has made a step, but the losses given to self.balance got no "
                "balanced backward pass: call self.manual_backward(loss) of what self.balance "
                "returned, not loss.backward(); with a strategy that runs the backward pass itself "
                "(DeepSpeed), train with constant weights from ntkmtl.weigh"
            )
        self._tell_step(batch)
        self._batch = self._last = None

    def _tell_step(self, batch: Any) -> None:
        """Inform the method if the optimizer has made a step of which it does not know yet."""
        stepped = self.trainer.global_step != self._seen_step
        self._seen_step = self.trainer.global_step
        if stepped and self._last is not None and self.balancer.needs_after_step:
            with self.trainer.precision_plugin.train_step_context():
                losses = self.compute_losses(batch)
            self.balancer.after_step(losses)

    def on_train_epoch_end(self) -> None:
        """Inform the method that an epoch is over."""
        super().on_train_epoch_end()
        self.balancer.end_epoch()
        self._ended_epochs = self.trainer.current_epoch + 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the Balancer's state in the dict ``checkpoint``; Lightning calls it."""
        super().on_save_checkpoint(checkpoint)
        if self._batch is not None and self._last is not None:
            self._tell_step(self._batch)  # callbacks that save run before on_train_batch_end
        checkpoint["balancer"] = self.balancer.state_dict()
        checkpoint["balancer_epochs"] = self._ended_epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the Balancer's state from a checkpoint; Lightning calls it.

        Args:
            checkpoint: The dict that :meth:`on_save_checkpoint` added the state to.

        Raises:
            ValueError: The checkpoint has no such state, or that of another method.
        """
        super().on_load_checkpoint(checkpoint)
        if "balancer" not in checkpoint:
            raise ValueError(
                "the checkpoint holds no state of a Balancer: it was written by a module that is "
                "no BalancedModule, or whose on_save_checkpoint does not call super(). To start "
                "from its weights alone, load checkpoint['state_dict'] into the module"
            )
        self.balancer.load_state_dict(checkpoint["balancer"])
        self._ended_epochs = checkpoint.get("balancer_epochs")
