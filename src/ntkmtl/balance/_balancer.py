"""The Balancer: the one call that a training loop makes instead of ``sum(losses).backward()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl._device import read, with_cpu_default
from ntkmtl._warnings import warn
from ntkmtl.balance._core import Core
from ntkmtl.balance._explain import Explanation, explanation
from ntkmtl.balance._look import look
from ntkmtl.balance._options import Length, Options, Priorities, Source, read_options
from ntkmtl.balance._read import (
    Losses,
    in_order,
    joint_losses,
    read_loss,
    task_names,
    without_labels,
)
from ntkmtl.balance._read_step import active_scaler, as_number, read_step, scaled_extra
from ntkmtl.balance._recording import recorded_kernel
from ntkmtl.balance._run import run
from ntkmtl.balance._snapshot import Snapshot, StepRecorder
from ntkmtl.balance._state import load_state, state_of
from ntkmtl.balance._step import BalanceResult, Step
from ntkmtl.errors import NonFiniteError
from ntkmtl.graph import (
    FeaturesLike,
    add_to_grad,
    allow_retained_backward,
    leaves,
    plain_backward,
)
from ntkmtl.kernel import ExtendedNTK, Probe, RememberInputs
from ntkmtl.kernel._pooling import Pooling
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.weighting._base import Weighting

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

__all__ = ["Balancer"]

_REMINDERS = {"after_step": 10, "optimizer": 10, "end_epoch": 100}
"""Calls of ``backward`` after which the Balancer warns that the method lacks these other calls."""


class Balancer:
    """Weighs k task losses and runs the backward pass.

    Call :meth:`backward` where plain training calls ``sum(losses).backward()``; the rest of the
    training loop does not change. Gradients are added to ``.grad`` as usual, so accumulation,
    clipping and any optimizer work. An optimizer that evaluates its closure several times per step
    needs :meth:`hold`. Some methods need calls of :meth:`after_step` and :meth:`end_epoch`; for
    other methods these do nothing.

    Args:
        method: A name from :func:`ntkmtl.weighting.names`, ``"module:Class"``,
            ``"./file.py:Class"``, or a weighting. One that keeps a state belongs, with this
            state, to the last Balancer that it was given to; an earlier one raises an error.
        tasks: Number or names of all tasks; None to take them from the first losses. Needed if the
            first batch does not contain all tasks.
        source: Where the kernel comes from. ``"representation"``: the tensors at which the shared
            part of the network ends; costs almost nothing. ``"exact"``: the shared parameters; one
            backward pass per task and mini-batch. ``"probe"``: random directions, see ``trunk``.
            ``"auto"``: exact kernels only as often as ``budget`` allows, eigenvalues averaged in
            logarithms; right for any network. None for the method's default.
        pooling: How the representation's gradients form a kernel: ``"blockwise"`` (the published
            code), ``"pooled"`` (Eq. 17), or ``"kernel"`` (multiplied by the kernel of the features,
            or of ``last_layer``).
        trunk: For ``source="probe"`` and ``"auto"``, the module that returns the features. A hook
            remembers its last inputs, and it is run again with other parameters; the module itself
            does not change. Or a :class:`ntkmtl.Probe`, which has more settings.
        corrected: True or None: probes correct the features' kernel by one factor per task,
            averaged over steps. False: the probes' estimate itself is the kernel.
        probe: A :class:`ntkmtl.Probe`, in place of ``trunk`` and ``corrected``.
        budget: For ``source="auto"``: mean cost of a step relative to plain training.
        minibatches: The paper's n. Above 1 the samples must be known: from losses of single
            samples, ``batch_dim``, or features. Always 1 for methods that combine gradients entry
            by entry.
        every: Compute the kernel in every ``every``-th step only, and reuse the weights in between.
            If some tasks are absent, steps are counted from each task's own last kernel.
        ema: Decay of a moving average of the eigenvalues (of the Gramian for Gramian methods); 0
            for none. With ``source="auto"`` the average is of logarithms, and its decay is 0.5 if
            this is 0. A task without a label keeps its average. For methods that read eigenvalues
            it still counts in the others' weights, so tasks that take turns are balanced.
        weight_heads: Whether the weights apply to the heads too, or to the shared part only. None
            for the method's default.
        shared: The shared parameters, if they cannot be found from the losses. Those that are
            frozen count from the step in which they are not.
        hooked: True: one ordinary backward pass of the weighted sum of the losses, with all hooks.
            False: one pass through the heads, and ``.grad`` is filled without hooks. None chooses
            by the hooks present.
        last_layer: The trunk's last linear layer, for ``pooling="kernel"``: its exact kernel
            approximates the trunk's.
        batch_dim: Dimension of the samples in the features or the tensors of the cut. None for 0 in
            features of 2, 4 or more dimensions.
        process_group: The processes that train together; None for the default group. Their
            mini-batches together form the kernel, and all processes get the same weights. DDP or
            FSDP averages ``.grad`` as in plain training.
        preset: ``"published"`` reproduces the published code of NTKMTL and NTKMTL-SR: the sum of
            the eigenvalues instead of their mean; for NTKMTL the shared gradient times k, clipped
            to norm 1. (The code's clipping for NTKMTL-SR has no effect, as it comes before the
            backward pass.)
        memory_budget: Bytes that the exact source may use to keep k gradients, which saves one pass
            over the trunk.
        log_losses: Balance the logarithms of the losses, as the published code's log-MGDA,
            log-CAGrad and log-IMTL do. Reported weights are still weights of the losses. None for
            the method's default. A loss of exactly 0 has no logarithm and gets weight 0.
        record: A recorder that reads the kernel in some steps; see
            :class:`ntkmtl.analysis.Recorder`. It does not change the run.
        priorities: Importance p_i of the tasks: balanced weights are multiplied by p_i / mean(p).
            A dict by name, where missing names have 1, or a list in the order of the tasks.
        length: Length of the combined gradient. ``"method"``: as the method computes it.
            ``"plain"``: equal to that of plain training, measured by the same kernel. ``"unit"``:
            equal to that of the first step. Or a number.
        **settings: Settings of the method, such as ``exponent``.

    Options about the kernel have no effect on methods that read losses only.

    Attributes:
        weighting: The method.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option has a wrong type, or the method has no such setting.

    Example:
        >>> import torch
        >>> from ntkmtl import Balancer
        >>> trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> balancer = Balancer()
        >>> x, y = torch.randn(8, 3), torch.randn(2, 8, 1)
        >>> z = trunk(x)
        >>> losses = [(head(z) - t).square().mean() for head, t in zip(heads, y)]
        >>> out = balancer.backward(losses)
        >>> out.weights.shape, trunk.weight.grad.shape
        (torch.Size([2]), torch.Size([4, 3]))
    """

    @with_cpu_default
    def __init__(
        self,
        method: str | Weighting = "ntkmtl-auto",
        *,
        tasks: int | Sequence[str] | None = None,
        source: Source | None = None,
        pooling: Pooling | None = None,
        trunk: nn.Module | RememberInputs | Probe | None = None,
        corrected: bool | None = None,
        probe: Probe | None = None,
        budget: float = 1.1,
        minibatches: int | None = None,
        every: int = 1,
        ema: float = 0.0,
        weight_heads: bool | None = None,
        shared: Iterable[Tensor] | None = None,
        hooked: bool | None = None,
        last_layer: nn.Linear | None = None,
        batch_dim: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        preset: Literal["published"] | None = None,
        memory_budget: int = 1 << 28,
        log_losses: bool | None = None,
        record: StepRecorder | None = None,
        priorities: Priorities | None = None,
        length: Length = "method",
        **settings: Any,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "method", "settings")}
        self.options: Options = read_options(method, given, settings)
        self.weighting = self.options.weighting
        self._core = Core(self.options, prepare=self.prepare_kernel)
        self._skipped = False
        self._scaled: tuple[GradScaler, float] | None = None
        self._calls_seen: set[str] = set()
        if self.options.probe is not None and self.options.shared is not None:
            self.options.probe.run_over(self.options.shared)
        if self.options.tasks is not None:
            self._core.set_tasks(self.options.tasks)
        if self.options.requires != "losses":
            allow_retained_backward()

    @property
    def method(self) -> str:
        """Name of the method, or of its class."""
        return self.options.method

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """Names of all tasks; None before the first batch if ``tasks`` was not given.

        Example:
            >>> Balancer(tasks=["size", "shape"]).tasks
            ('size', 'shape')
        """
        return self._core.memory.names

    @property
    def source(self) -> Source:
        """Where the kernel comes from."""
        return self.options.source

    @property
    def pooling(self) -> Pooling:
        """How the representation's gradients form a kernel."""
        return self.options.pooling

    @property
    def minibatches(self) -> int:
        """The paper's n."""
        return self.options.minibatches

    @property
    def every(self) -> int:
        """Number of steps from one kernel to the next."""
        return self.options.every

    @property
    def ema(self) -> float:
        """Decay of the moving average."""
        return self.options.ema

    @property
    def weight_heads(self) -> bool:
        """Whether the weights apply to the heads too."""
        return self.options.weight_heads

    @property
    def log_losses(self) -> bool:
        """Whether the logarithms of the losses are balanced."""
        return self.options.log_losses

    @property
    def shared(self) -> list[Tensor] | None:
        """The shared parameters if the user named them, else None."""
        return self.options.shared

    def __repr__(self) -> str:
        options = self.options
        parts = [repr(options.method)]
        if options.requires != "losses":
            parts.append(f"source={options.source!r}")
            if options.source in ("representation", "probe"):
                parts.append(f"pooling={options.pooling!r}")
            parts.append(f"minibatches={options.minibatches}")
        return f"Balancer({', '.join(parts)})"

    # ------------------------------------------------------------------ backward

    @with_cpu_default
    def backward(
        self,
        losses: Losses,
        features: FeaturesLike | None = None,
        *,
        counts: Tensor | None = None,
        scaler: GradScaler | None = None,
        scale: float = 1.0,
        extra: Tensor | None = None,
    ) -> BalanceResult:
        """Weigh the losses and add the gradient of their weighted sum to ``.grad``.

        Args:
            losses: k losses, as a sequence or a dict by task. Each is a scalar, the mean over the
                batch; or losses of single samples, shape (B,); or a pair ``(values, mask)`` of that
                shape. Means are taken of the latter two. None for a task without a label in this
                batch; a dict may also omit it. Such a task has weight 0, its head gets no gradient,
                and it changes no other task's weight.
            features: The shared representation that the heads read, if it should not be found from
                the losses: one tensor, a tuple of tensors that every task reads, a list or dict
                with one tensor per task, or the result of :func:`ntkmtl.branch`. Every path from a
                loss to the shared parameters must pass through them.
            counts: Number of labels (valid pixels, say) per task and sample, shape (k, B), in the
                order of :attr:`tasks`, for losses that are means over labels instead of samples.
            scaler: The gradient scaler of mixed precision. Pass unscaled losses, and call
                ``scaler.step(optimizer)`` as usual.
            scale: Factor of the gradients: 1 / m if m batches make one step of the optimizer.
                Weights do not depend on it; dividing the losses would change the weights of many
                methods.
            extra: A loss outside the balance, shape (), added with weight 1.

        Returns:
            Weights and eigenvalues of this step.

        Raises:
            NonFiniteError: A loss or a gradient is NaN or infinite. No ``.grad`` was changed. With
                a scaler, no error is raised but the step is marked to be skipped. Methods that
                read losses only check the losses alone.
            ValueError: Losses or features do not fit the method or each other, the kernel does not
                exist for this graph, ``scale`` is not a positive number, or the weighting was given
                to another Balancer.
            TypeError: An argument has a wrong type.
        """
        names, losses = task_names(losses, self.tasks)
        if not 0.0 < as_number("scale", scale) < math.inf:
            raise ValueError(f"scale must be positive and finite, found {scale}")
        given = (names, losses, features, counts, scaler, scale, extra)
        if torch.is_grad_enabled() and not _autocasts():
            return self._backward(*given)
        with ExitStack() as modes:
            # Modes of the forward pass in which a plain backward pass works as well. Products of
            # gradients need full precision.
            modes.enter_context(torch.inference_mode(mode=False))
            modes.enter_context(torch.enable_grad())
            modes.enter_context(torch.autocast("cpu", enabled=False))
            modes.enter_context(torch.autocast("cuda", enabled=False))
            return self._backward(*given)

    def _backward(
        self,
        names: tuple[str, ...],
        losses: Losses,
        features: FeaturesLike | None,
        counts: Tensor | None,
        scaler: GradScaler | None,
        scale: float,
        extra: Tensor | None,
    ) -> BalanceResult:
        memory = self._core.memory
        self._core.require_owned()
        if memory.names is None:
            self._core.set_tasks(names)
        assert memory.names is not None
        values = in_order(losses, memory.names)
        if counts is not None:
            values = without_labels(values, counts)
        active = active_scaler(scaler)
        factor = 1.0 if active is None else float(active.get_scale())
        step = read_step(self._core, values, active, factor, scale, extra)
        self._skipped = False
        if step is None:
            return self._without_labels(active, scale, extra)
        needed = active is not None and self.weighting.needs_after_step
        self._scaled = (active, factor) if active is not None and needed else None
        self._remind(step)
        try:
            outside = step.constant if step.extra is None else step.extra.detach()
            if step.raw.device.type == "cpu":
                step.require_finite(step.raw, "loss")
                if outside is not None:
                    step.require_extra(outside)
            elif outside is not None:
                step.waiting.append((outside, step.require_extra))
            return self._recorded(step, features, counts)
        except NonFiniteError:
            if active is None:
                raise
            self._skipped = True
            # Not by a backward pass, as parts of the graph may be freed already.
            _mark_skipped(step.losses)
            return step.result(torch.zeros(len(step.present)), skipped=True)

    def _without_labels(
        self, active: GradScaler | None, scale: float, extra: Tensor | None
    ) -> BalanceResult:
        """Handle a batch without any label: the loss outside the balance counts all the same."""
        names, number = self.tasks, self._core.memory.step - 1
        assert names is not None
        weights = torch.zeros(len(names))
        whole = scaled_extra(extra, 1.0)
        if extra is None:
            return BalanceResult(weights)
        value = extra.detach().reshape(())
        if bool(value.isfinite()):
            if whole is not None:
                whole = whole if active is None else active.scale(whole)
                plain_backward([whole], [scale])
        elif active is None or whole is None:
            raise NonFiniteError("extra", number, "loss", float(value))
        else:
            self._skipped = True
            active.scale(whole)
            _mark_skipped([whole])
        none = torch.zeros(0, dtype=torch.float64)
        return BalanceResult(weights, skipped=self._skipped, _terms=(none, none, value))

    def _recorded(
        self, step: Step, features: FeaturesLike | None, counts: Tensor | None
    ) -> BalanceResult:
        """Run the step, and pass it to the recorder if it wants this step."""
        if self.options.requires != "losses" and step.losses:
            look(self._core, step)
        record = self.options.record
        if record is None or not record.wants(step.number):
            result = run(self._core, step, features, counts)
            self._hold(result, step)
            return result
        kernel = recorded_kernel(self._core, record, step, features, counts)
        result = run(self._core, step, features, counts)
        self._hold(result, step)
        self._show(record, step, result, kernel)
        return result

    def _show(
        self, record: StepRecorder, step: Step, result: BalanceResult, kernel: ExtendedNTK | None
    ) -> None:
        (raw,) = read(step.raw)
        record(
            Snapshot(
                step=step.number,
                tasks=step.names,
                present=tuple(step.present),
                losses=raw.exp() if self.options.log_losses else raw,
                weights=result.weights.to("cpu", torch.float64),
                kernel=kernel,
            )
        )

    # ------------------------------------------------------------------ held weights

    def prepare_kernel(self, kernel: ExtendedNTK) -> ExtendedNTK:
        """Return the kernel that the method reads; subclasses may override this to change it.

        Args:
            kernel: The kernel of the tasks with labels in this batch, as the source computed it.

        Returns:
            A kernel of the same tasks and mini-batches; here ``kernel`` itself.
        """
        return kernel

    @property
    def can_hold(self) -> bool:
        """Whether :meth:`hold` works: the method only weighs losses, so weights can be reused."""
        return self.options.requires != "jacobian" and not self.weighting.has_head_objective

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Compute weights only once within the block.

        The first :meth:`backward` in the block computes weights, and the others reuse them. Use it
        for optimizers that evaluate the losses several times per step and need the same function
        each time (L-BFGS, SAM), or for the micro-batches of one step.

        Raises:
            ValueError: The method combines gradients entry by entry, so it has no weights to keep.

        Example:
            >>> import torch
            >>> from ntkmtl import Balancer
            >>> x = torch.ones(2, requires_grad=True)
            >>> balancer = Balancer("si")
            >>> with balancer.hold():
            ...     a = balancer.backward([x.sum(), 4 * x.sum()]).weights
            ...     b = balancer.backward([3 * x.sum(), 5 * x.sum()]).weights
            >>> a.tolist() == b.tolist() == [0.5, 0.125]
            True
        """
        if not self.can_hold:
            raise ValueError(
                f"{self.method} does more than weigh whole gradients, so its weights cannot be held"
            )
        if self._core.held is not None:
            yield  # nested in another block, which keeps the weights
            return
        self._core.held = {}
        try:
            yield
        finally:
            self._core.held = None

    def _hold(self, result: BalanceResult, step: Step) -> None:
        """Store the weights if a ``hold`` block is active."""
        held = self._core.held
        if held is None:
            return
        weights = result.balanced
        for position, weight in zip(step.present, weights.tolist(), strict=True):
            held.setdefault(position, weight)

    def explain(
        self,
        losses: Losses,
        features: FeaturesLike | None = None,
        *,
        model: nn.Module | None = None,
    ) -> Explanation:
        """Print where the shared part of the network ends, found from the losses.

        Nothing is differentiated, and no ``.grad`` changes.

        Args:
            losses: As in :meth:`backward`.
            features: As in :meth:`backward`, to check whether every path passes through them.
            model: The model, to show names of parameters instead of shapes.

        Returns:
            The printed information as an object.

        Example:
            >>> import torch
            >>> from ntkmtl import Balancer
            >>> model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(3, 4)})
            >>> z = model["trunk"](torch.ones(5, 3)).relu()
            >>> heads = [torch.nn.Linear(4, 1) for _ in range(2)]
            >>> losses = [h(z).mean() for h in heads]
            >>> found = Balancer().explain(losses, model=model)  # doctest: +ELLIPSIS
            2 tasks: 0, 1
            the representation, where the part that tasks share ends:
              (5, 4) made by relu..., read by all tasks
            shared by two or more tasks: 2 parameters, 16 entries: trunk...
            task 0: 2 parameters of its own; all of its gradient passes the representation
            task 1: 2 parameters of its own; all of its gradient passes the representation
            weights: ntkmtl-auto, from exact kernels, one in 14 steps or more often, averaged
        """
        found = self._explained(losses, features, model)
        print(found)
        return found

    def _explained(
        self, losses: Losses, features: FeaturesLike | None, model: nn.Module | None
    ) -> Explanation:
        names, losses = task_names(losses)
        known = self._core.memory.names or names
        values = [
            (name, known_loss[0])
            for name, loss in zip(known, in_order(losses, known), strict=True)
            if (known_loss := read_loss(loss, name)) is not None
        ]
        return explanation(self._core, values, features, model, known)

    # ------------------------------------------------------------------ other calls for methods

    @with_cpu_default
    def after_step(self, losses: Losses | Callable[[], Losses]) -> None:
        """Give the method the losses on the same batch after the optimizer's step.

        Does nothing for methods that do not need it, and after a step that the scaler skipped. With
        a scaler, call it after ``scaler.update()``.

        Args:
            losses: As in :meth:`backward`, or a function without arguments that returns them, which
                is called only if needed. Gradients stay enabled for losses with input derivatives;
                other losses are faster with ``torch.no_grad()`` inside the function.

        Raises:
            NonFiniteError: A loss is NaN or infinite. The method has not learned from this step,
                but the optimizer's step is already done.
            ValueError: The weighting was given to another Balancer.
        """
        self._calls_seen.add("after_step")
        if not self.weighting.needs_after_step or self._skipped or self._overflowed():
            return
        self._core.require_owned()
        if callable(losses):
            losses = losses()
        memory = self._core.memory
        names, losses = task_names(losses, memory.names)
        if memory.names is None:
            self._core.set_tasks(names)
        assert memory.names is not None
        values = in_order(losses, memory.names)
        found = [
            (i, known[0])
            for i, value in enumerate(values)
            if (known := read_loss(value, memory.names[i], needs_gradient=False)) is not None
        ]
        ranks = Ranks.current(self.options.process_group)
        after, present = joint_losses(
            [mean for _, mean in found], [i for i, _ in found], len(memory.names), ranks
        )
        (after,) = read(after)
        for position, value in zip(present, after.tolist(), strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(memory.names[position], memory.step - 1, "loss", value)
        if present:
            self.weighting.after_step(after, torch.tensor(present))

    def _overflowed(self) -> bool:
        """Whether the scaler skipped the step: it then lowers its scale."""
        if self._scaled is None:
            return False
        scaler, before = self._scaled
        return float(scaler.get_scale()) < before

    @property
    def needs_after_step(self) -> bool:
        """Whether :meth:`after_step` does anything."""
        return self.weighting.needs_after_step

    @with_cpu_default
    def end_epoch(self) -> None:
        """Tell the method that an epoch is over. Does nothing for methods that do not need it.

        Raises:
            ValueError: The weighting was given to another Balancer.
        """
        self._calls_seen.add("end_epoch")
        self._core.require_owned()
        self.weighting.end_epoch()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the method's learned parameters. Pass them to the optimizer with the model's."""
        self._calls_seen.add("optimizer")
        return self.weighting.parameters()

    def _remind(self, step: Step) -> None:
        """Warn once if a method cannot learn because another call is missing."""
        if step.number not in _REMINDERS.values():
            return
        for what, advice in self.weighting.needs():
            if step.number == _REMINDERS[what] and what not in self._calls_seen:
                warn(f"{self.method} has not learned anything in {step.number} steps: {advice}")

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on besides its input.

        One flat dict of tensors, which ``torch.save`` and safetensors take.
        """
        return state_of(self._core)

    @with_cpu_default
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state from :meth:`state_dict`.

        Args:
            state: What :meth:`state_dict` of a Balancer with the same method, source and tasks
                returned.

        Raises:
            TypeError: The state is not a dict.
            ValueError: The state is damaged, or of another method, source or other tasks.
        """
        load_state(self._core, state)

    def reuses(self, tasks: Sequence[int] | Tensor | None = None) -> bool:
        """Whether the next call would reuse weights instead of computing a kernel.

        A task's weight is recomputed in its first step that is at least ``every`` steps after its
        last kernel. So weights of tasks that take turns are all recomputed.

        Args:
            tasks: Positions of the tasks that have a loss; None for all.

        Example:
            >>> import torch
            >>> b = Balancer("ntkmtl-sr", minibatches=1, every=2)
            >>> for _ in range(3):
            ...     z = torch.ones(2, 3, requires_grad=True)
            ...     print(b.reuses())
            ...     _ = b.backward([z.sum(), 2 * z.sum()], features=z)
            False
            True
            False
        """
        memory = self._core.memory
        if self.options.source == "auto":
            some = range(len(memory.names or ())) if tasks is None else [int(i) for i in tasks]
            return memory.known(some) is not None and all(
                memory.step < memory.due.get(i, 0) for i in some
            )
        at = slice(None) if tasks is None else torch.as_tensor(tasks)
        return memory.young(at, memory.step, self.options.every)


def _autocasts() -> bool:
    """Whether autocast is on, which runs operations in lower precision."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _mark_skipped(losses: Sequence[Tensor]) -> None:
    """Set infinite gradients, which make a gradient scaler skip the step."""
    add_to_grad(
        (p, torch.full_like(p, math.inf, memory_format=torch.contiguous_format))
        for p in leaves(losses)[0]
    )
