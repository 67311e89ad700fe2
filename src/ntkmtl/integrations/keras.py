"""Balanced training with Keras 3 on PyTorch: :class:`BalancedModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ntkmtl.balance import Balancer
from ntkmtl.errors import MissingExtraError, missing_extra
from ntkmtl.integrations._shared import record_of, require_balancer

_BACKEND = (
    "ntkmtl.integrations.keras needs the PyTorch backend of Keras: set KERAS_BACKEND=torch in the "
    "environment before keras is first imported"
)

try:
    import keras
except ModuleNotFoundError as error:
    if error.name in ("tensorflow", "jax"):
        raise MissingExtraError(f"{_BACKEND}; it looked for {error.name}", name="keras") from error
    raise missing_extra("ntkmtl.integrations.keras", "keras", error) from error
if keras.config.backend() != "torch":
    raise ImportError(f"{_BACKEND}; the backend is {keras.config.backend()}")

__all__ = ["BalancedModel"]

_PREFIX = "balancer."
_input = keras.Input((1,), name="input")
_Functional: Any = type(keras.Model(_input, _input, name="model"))  # not exported by name


@keras.saving.register_keras_serializable(package="ntkmtl")
class BalancedModel(keras.Model):  # type: ignore[misc]
    """A Keras model that balances the losses of its outputs.

    Create it like ``keras.Model(inputs, outputs)`` with a dict of outputs, and compile it with a
    loss for each output and a Balancer. ``fit`` then trains with balanced losses, with any Keras
    optimizer, ``gradient_accumulation_steps`` and ``mixed_float16``. Its logs contain
    ``weight/NAME`` and, once computed, ``eigenvalue/NAME`` next to Keras's ``NAME_loss``. An output
    has no label in a batch if all its sample weights are 0. Losses of layers (``add_loss``,
    regularizers) are added outside the balance.

    Weights files and ``.keras`` files include the Balancer's state. It is restored if the model is
    compiled with a Balancer before it loads weights.

    Example:
        >>> import keras, torch
        >>> from ntkmtl import Balancer
        >>> inputs = keras.Input((3,))
        >>> z = keras.layers.Dense(4, activation="relu")(inputs)
        >>> outputs = {name: keras.layers.Dense(1, name=name)(z) for name in ("a", "b")}
        >>> model = BalancedModel(inputs, outputs)
        >>> model.compile("adam", loss={"a": "mse", "b": "mae"}, balancer=Balancer())
        >>> x, y = torch.ones(8, 3), torch.ones(8, 1)
        >>> history = model.fit(x, {"a": y, "b": y}, verbose=0)
        >>> sorted(history.history)[:3]
        ['a_loss', 'b_loss', 'eigenvalue/a']
    """

    balancer: Balancer | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> BalancedModel:
        """Create the model, a ``BalancedFunctional`` if inputs and outputs are given.

        Otherwise Keras would turn this class into a Functional for good, and no subclass with its
        own ``call`` could be created after that.
        """
        if cls is BalancedModel and (len(args) == 2 or "outputs" in kwargs):
            cls = BalancedFunctional
        found: BalancedModel = super().__new__(cls, *args, **kwargs)
        return found

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        *args: Any,
        balancer: Balancer | None = None,
        **kwargs: Any,
    ) -> None:
        """Compile the model.

        Args:
            optimizer: As for ``keras.Model.compile``.
            loss: Loss of each output, a dict; None for an output that is not trained.
            loss_weights: For a model without a Balancer only.
            *args: As for ``keras.Model.compile``, starting with the metrics.
            balancer: The Balancer; None for the plain sum, or for a model that only predicts.
            **kwargs: As for ``keras.Model.compile``.

        Raises:
            ValueError: ``loss_weights`` are given, or the method learns weights by a PyTorch
                optimizer.
            TypeError: ``loss`` is not a dict, ``balancer`` is not a Balancer, or the class
                overrides ``compute_loss``.
        """
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)
        # In a tuple, so that Keras does not search it for layers.
        self._balancing: tuple[Balancer, dict[str, Any]] | None = None
        self.balancer = None
        if balancer is None:
            return
        self.balancer = require_balancer(balancer, "balancer")
        if not isinstance(loss, Mapping):
            raise TypeError(f"loss must be a dict with a loss for each output, found {type(loss)}")
        if type(self).compute_loss is not keras.Model.compute_loss:
            raise TypeError(
                f"{type(self).__name__}.compute_loss returns one loss, where the losses of the "
                "outputs are balanced and it would be ignored; give losses by compile(loss=...), "
                "and further terms by add_loss"
            )
        if loss_weights is not None:
            raise ValueError("loss_weights would be balanced away: use Balancer(priorities=...)")
        if any(what == "optimizer" for what, _ in balancer.weighting.needs()):
            raise ValueError(
                f"{balancer.method} learns weights by an optimizer of PyTorch, and Keras has its "
                "own; use another method"
            )
        self._task_losses = {name: _as_loss(one) for name, one in loss.items() if one is not None}
        self._measured: dict[str, float] = {}

    def train_step(self, data: Any) -> dict[str, Any]:
        """Run a training step with balanced losses; Keras calls it.

        Args:
            data: A batch, (x, y) or (x, y, sample_weight); y has a key for each trained output.

        Returns:
            The metrics of Keras by name, and each output's last ``weight/NAME`` and
            ``eigenvalue/NAME``.
        """
        if self.balancer is None:
            found: dict[str, Any] = super().train_step(data)
            return found
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=True)
        self.zero_grad()
        losses = self._task_loss_values(y, y_pred, sample_weight)
        extra: Tensor | None = keras.ops.sum(keras.ops.stack(self.losses)) if self.losses else None
        factor = float(self.optimizer.scale_loss(torch.ones(())))
        scaling: dict[str, Any] = {"scale": factor}
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            scaling = {"scaler": _Scaler(factor)}  # skips steps that are not finite
        result = self.balancer.backward(losses, extra=extra, **scaling)
        record = record_of(self.balancer, losses, result)
        with torch.no_grad():
            stepped = self._apply_gradients()
            self._track_loss(x, y, y_pred, sample_weight)
        if stepped:
            self.balancer.after_step(
                lambda: self._task_loss_values(y, self(x, training=True), sample_weight),
            )
        self._measured.update(
            {name: v.item() for name, v in record.items() if not name.startswith("loss/")}
        )
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return {**logs, **self._measured}

    def _apply_gradients(self) -> bool:
        """Give the optimizer the gradients, and return whether the method must learn of a step."""
        variables = self.trainable_weights
        gradients = [v.value.grad for v in variables]
        if all(gradient is None for gradient in gradients):  # no label, no step
            return False
        inner: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if inner.gradient_accumulation_steps:
            # Keras would forget what it has accumulated for a variable without a gradient.
            pairs = zip(gradients, variables, strict=True)
            gradients = [torch.zeros_like(v.value) if g is None else g for g, v in pairs]
        assert self.balancer is not None
        if not self.balancer.needs_after_step:
            self.optimizer.apply(gradients, variables)
            return False
        before = int(self.optimizer.iterations)  # of updates, not of accumulated batches
        self.optimizer.apply(gradients, variables)
        return int(self.optimizer.iterations) != before

    def _track_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
        """Update Keras's metric of the plain sum, which its progress bar and callbacks read."""
        loss = self.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )
        count = next(t for t in keras.tree.flatten(x) if t is not None).shape[0]
        next(m for m in self.metrics if m.name == "loss").update_state(loss, sample_weight=count)

    def _task_loss_values(
        self, y: Any, y_pred: Any, sample_weight: Any
    ) -> dict[str, Tensor | None]:
        for name, part in (("y", y), ("the outputs", y_pred)):
            if not isinstance(part, Mapping) or not set(self._task_losses) <= set(part):
                keys = sorted(part) if isinstance(part, Mapping) else type(part)
                raise TypeError(
                    f"{name} must be a dict with {sorted(self._task_losses)}, found {keys}"
                )
        found: dict[str, Tensor | None] = {}
        for name, loss in self._task_losses.items():
            weight = sample_weight
            if isinstance(sample_weight, Mapping):
                weight = sample_weight.get(name)
            if weight is not None and not bool(keras.ops.any(weight != 0)):
                found[name] = None
                continue
            found[name] = loss(y[name], y_pred[name], sample_weight=weight)
        return found

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Train as ``keras.Model.fit`` does, and inform the method about epochs.

        Args:
            *args: As for ``keras.Model.fit``.
            callbacks: As there; one is added.
            **kwargs: As there.

        Returns:
            What ``keras.Model.fit`` returns, its ``History``.
        """
        balancer = self.balancer
        if balancer is None:
            return super().fit(*args, callbacks=callbacks, **kwargs)
        # First, as callbacks that save the model must save what the end of the epoch has changed.
        told = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: balancer.end_epoch())
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks.insert(0, told)
            try:
                return super().fit(*args, callbacks=callbacks, **kwargs)
            finally:
                callbacks.callbacks.remove(told)
        one = callbacks is not None and not isinstance(callbacks, Sequence)
        callbacks = [told, callbacks] if one else [told, *(callbacks or [])]
        return super().fit(*args, callbacks=callbacks, **kwargs)

    # ------------------------------------------------------------------ state

    def get_compile_config(self) -> dict[str, Any]:
        """Return nothing: compile a loaded model again, with a Balancer, to continue training."""
        return {}

    def save_own_variables(self, store: Any) -> None:
        """Save the model's own variables and the Balancer's state to ``store``; Keras calls it."""
        super().save_own_variables(store)
        if self.balancer is not None:
            for key, value in self.balancer.state_dict().items():
                store[_PREFIX + key.replace("/", ":")] = value.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Load the model's own variables and, with a Balancer, its state; Keras calls it.

        Args:
            store: What :meth:`save_own_variables` wrote, by name.

        Raises:
            ValueError: The file has no state of a Balancer, or that of another method.
        """
        names = [str(key) for key in store.keys()]  # noqa: SIM118  (a store is not a dict)
        kept = [name for name in names if name.startswith(_PREFIX)]
        super().load_own_variables({n: store[n] for n in names if n not in kept})
        if self.balancer is None:
            return
        if not kept:
            raise ValueError(
                "the file holds no state of a Balancer; load it before compile(balancer=...) to "
                "start from its weights alone"
            )
        self.balancer.load_state_dict(
            {
                name.removeprefix(_PREFIX).replace(":", "/"): torch.as_tensor(store[name][()])
                for name in kept
            }
        )


@keras.saving.register_keras_serializable(package="ntkmtl")
class BalancedFunctional(BalancedModel, _Functional):  # type: ignore[misc]
    """What ``BalancedModel(inputs, outputs)`` creates."""


def _as_loss(found: Any) -> keras.losses.Loss:
    """Return a loss averaged over the batch, from a loss, a name or a function."""
    loss = keras.losses.get(found)
    return loss if isinstance(loss, keras.losses.Loss) else _MeanLoss(loss)


class _MeanLoss(keras.losses.Loss):  # type: ignore[misc]
    """A loss from a function, with the ranks of labels and outputs made equal as Keras does."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if y_true.ndim + 1 == y_pred.ndim and y_pred.shape[-1] == 1:
            y_true = y_true[..., None]
        elif y_true.ndim == y_pred.ndim + 1 and y_true.shape[-1] == 1:
            y_pred = y_pred[..., None]
        value: Tensor = self.function(y_true, y_pred)
        return value


class _Scaler:
    """The loss scale of a ``LossScaleOptimizer``, with the interface of a gradient scaler."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return self.factor

    def scale(self, losses: list[Tensor]) -> list[Tensor]:
        return [loss * self.factor for loss in losses]
