"""Balanced training with the Hugging Face Trainer: :class:`BalancedTrainer`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl.balance import Balancer
from ntkmtl.balance._read import Losses, in_order, read_loss, task_names
from ntkmtl.errors import missing_extra
from ntkmtl.files import atomic_write
from ntkmtl.integrations._shared import record_of, require_balancer, require_same_sum

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
except ModuleNotFoundError as error:
    raise missing_extra("ntkmtl.integrations.transformers", "transformers", error) from error

__all__ = ["BalancedTrainer"]

_FILE = "balancer.pt"
_EPOCHS = "trainer.epochs"  # in that file besides the Balancer's state
_REMEDY = "put further terms among outputs['losses'], and factors into Balancer(priorities=...)"
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


class BalancedTrainer(Trainer):
    """A Trainer that balances the losses returned by the model.

    The model returns ``{"loss": sum(losses.values()), "losses": losses, ...}``. The rest works as
    in ``Trainer``: accumulation, clipping, mixed precision, DDP, evaluation, adapters of peft. Logs
    contain ``loss/NAME``, ``weight/NAME`` and, if it was computed, ``eigenvalue/NAME`` of the last
    step. Checkpoints include the Balancer's state; with ``model_init`` each ``train`` starts from
    the state that the Balancer was given with, as the model does. Methods are informed about steps
    and epochs, and their learned parameters are added to the optimizer that the Trainer creates.

    Args:
        *args: As for ``Trainer``.
        balancer: The Balancer.
        **kwargs: As for ``Trainer``.

    Attributes:
        balancer: The Balancer.

    Raises:
        TypeError: ``balancer`` is not a Balancer.
        ValueError: ``compute_loss_func`` is given, which returns a single loss.

    Example:
        >>> import tempfile, torch
        >>> from transformers import TrainingArguments
        >>> from ntkmtl import Balancer
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk, self.a, self.b = (torch.nn.Linear(3, 3) for _ in range(3))
        ...
        ...     def forward(self, x, labels):
        ...         z = self.trunk(x).relu()
        ...         heads = {"a": self.a, "b": self.b}
        ...         losses = {name: (h(z) - labels).square().mean() for name, h in heads.items()}
        ...         return {"loss": sum(losses.values()), "losses": losses}
        >>> data = [{"x": torch.randn(3), "labels": torch.randn(3)} for _ in range(16)]
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
        ...     quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        ...     args = TrainingArguments(folder, max_steps=2, use_cpu=True, **quiet)
        ...     trainer = BalancedTrainer(Net(), args, train_dataset=data, balancer=Balancer())
        ...     _ = trainer.train()
        {'train_runtime': ...}
        >>> trainer.balancer.tasks
        ('a', 'b')
    """

    def __init__(self, *args: Any, balancer: Balancer, **kwargs: Any) -> None:
        self.balancer = require_balancer(balancer, "balancer")
        self._pending: tuple[Losses, Tensor] | None = None
        self._sums = 0
        self._initial = self.balancer.state_dict()
        self._known_epochs: int | None = None  # ended ones in the state that was resumed
        self._batch: tuple[nn.Module, dict[str, Any]] | None = None
        self._record: dict[str, Tensor] = {}
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func returns one loss; let the model return the losses of the tasks "
                "as outputs['losses']"
            )
        # Losses are means over the batch, so the Trainer must not divide by the number of items.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_Events(self))

    # ------------------------------------------------------------------ the backward pass

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, and replace its backward pass by the balanced one.

        Raises:
            ValueError: DeepSpeed is enabled, which runs the backward pass itself.
        """
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            raise ValueError(
                "DeepSpeed runs the backward pass itself; train with DDP or FSDP, or with constant "
                "weights from ntkmtl.weigh"
            )
        self.accelerator.backward = self._backward

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of the losses, and store the losses for the backward pass.

        Args:
            model: The model; its outputs have the sum ``"loss"`` and the dict ``"losses"``.
            inputs: A batch, as keyword arguments of the model.
            return_outputs: Return the outputs as well.
            num_items_in_batch: Not used, as losses are means over the batch.

        Returns:
            The sum, or the pair (sum, outputs).

        Raises:
            ValueError: The model does not return its losses, or its loss is not their sum. On the
                CPU every step is checked, elsewhere steps 0, 1, 2, 4, 8 and so on, as reading a
                value waits for the device.
        """
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            losses = self._losses_in(outputs)
            if loss.device.type == "cpu" or not self._sums & (self._sums - 1):
                _require_sum(loss, losses, _HALF.get(self.accelerator.mixed_precision))
            self._sums += 1
            self._pending = losses, loss
            self._batch = (model, inputs) if self.balancer.needs_after_step else None
        return (loss, outputs) if return_outputs else loss

    def _losses_in(self, outputs: Any) -> Losses:
        if not isinstance(outputs, Mapping) or outputs.get("losses") is None:
            found = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs)
            raise ValueError(
                "the model must return a dict with 'loss' (the sum) and 'losses' (one per task, by "
                f"name), found {found}"
            )
        losses: Losses = outputs["losses"]
        return losses

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Replace ``accelerator.backward(loss)``."""
        pending, self._pending = self._pending, None
        if pending is None:
            raise RuntimeError(
                "there are no losses to balance: a compute_loss of your own must call super()"
            )
        losses, total = pending
        require_same_sum(loss, total, 1, _REMEDY)
        # Older Trainers divide by this number also in a last, shorter accumulation.
        usual = self.args.gradient_accumulation_steps
        steps = getattr(self, "current_gradient_accumulation_steps", usual)
        result = self.balancer.backward(losses, scaler=self.accelerator.scaler, scale=1 / steps)
        self._record = record_of(self.balancer, losses, result)

    def _end_step(self) -> None:
        for learned in self.balancer.parameters():
            learned.grad = None  # the Trainer resets only gradients of the model
        if self._batch is None:
            return
        model, inputs = self._batch
        with self.compute_loss_context_manager():
            losses = self._losses_in(model(**inputs))
        self.balancer.after_step(losses)

    # ------------------------------------------------------------------ other hooks

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Return what ``Trainer.prediction_step`` does, without the losses among the predictions.

        Args:
            model: As for ``Trainer.prediction_step``.
            inputs: As there.
            prediction_loss_only: As there.
            ignore_keys: As there; ``"losses"`` is added.
        """
        if ignore_keys is None:
            config = getattr(self.model, "config", None)
            ignore_keys = list(getattr(config, "keys_to_ignore_at_inference", ["past_key_values"]))
        return super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys=[*ignore_keys, "losses"]
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Return the Trainer's optimizer, with the method's learned parameters added.

        Raises:
            ValueError: An optimizer was given that does not have these parameters.
        """
        before = self.optimizer
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        learned = list(self.balancer.parameters())
        if learned and before is None:
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0})
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        if not held.issuperset(id(one) for one in learned):
            raise ValueError(
                f"{self.balancer.method} learns its weights, and the given optimizer does not have "
                "its parameters: create it with [*model.parameters(), *balancer.parameters()]"
            )
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log ``logs`` and, beside a loss, the losses, weights and eigenvalues of the last step."""
        if "loss" in logs:
            logs = {**logs, **{name: value.item() for name, value in self._record.items()}}
        super().log(logs, *args, **kwargs)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train; when resuming, restore the Balancer's state; with a new model, its first state.

        Args:
            resume_from_checkpoint: As for ``Trainer.train``: a folder, or True for the last one.
            *args: As there.
            **kwargs: As there.

        Returns:
            What ``Trainer.train`` returns.

        Raises:
            FileNotFoundError: The checkpoint has no state of a Balancer.
        """
        self._known_epochs = None
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if found:
            path = Path(str(found)) / _FILE
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is missing: the checkpoint was not written by a BalancedTrainer, or "
                    "not completely; resume from another one"
                )
            saved = torch.load(path, weights_only=True)
            epochs = saved.pop(_EPOCHS, None)
            self.balancer.load_state_dict(saved)
            self._known_epochs = None if epochs is None else int(epochs)
        elif self.model_init is not None:
            self.balancer.load_state_dict(self._initial)
        return super().train(resume_from_checkpoint, *args, **kwargs)


def _require_sum(loss: Tensor, losses: Losses, half: torch.dtype | None) -> None:
    """Check that the model's loss is the sum of its losses, up to rounding.

    Args:
        loss: The model's loss.
        losses: Its losses.
        half: The dtype in which they may have been added under mixed precision.

    Raises:
        ValueError: It is not.
    """
    names, losses = task_names(losses)
    pairs = zip(names, in_order(losses, names), strict=True)
    known = [read[0].detach() for name, one in pairs if (read := read_loss(one, name)) is not None]
    values = [float(one) for one in known]
    found, total, size = float(loss.detach()), sum(values), sum(map(abs, values))
    dtypes = [loss.dtype, *(one.dtype for one in known), *([] if half is None else [half])]
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    near = abs(found - total) <= max(1e-4, (len(known) + 2) * rounding) * size
    if math.isfinite(total) and not near:  # NaN in the loss alone counts as different
        raise ValueError(
            f"outputs['loss'] is {found:.6g}, where the sum of outputs['losses'] is {total:.6g}: "
            f"what makes the difference would be lost; {_REMEDY}"
        )


class _Events(TrainerCallback):
    """Informs the Balancer about steps, epochs and checkpoints."""

    def __init__(self, trainer: BalancedTrainer) -> None:
        self.trainer = trainer
        self.epochs = 0  # ended ones

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epochs = int(state.epoch or 0)
        known = self.trainer._known_epochs
        if known is not None and known < self.epochs:
            # The last step of an epoch wrote the checkpoint: its on_epoch_end never comes.
            self.trainer.balancer.end_epoch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._end_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.balancer.end_epoch()
        self.epochs += 1

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            saved = {**self.trainer.balancer.state_dict(), _EPOCHS: torch.tensor(self.epochs)}
            with atomic_write(folder / _FILE) as file:
                torch.save(saved, file)
