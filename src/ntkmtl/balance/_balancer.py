"""The Balancer: the one call that a training loop makes instead of ``sum(losses).backward()``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl._device import read, with_cpu_default
from ntkmtl._warnings import warn
from ntkmtl.balance._explain import Explanation, explanation
from ntkmtl.balance._memory import pack, unpack
from ntkmtl.balance._options import Length, Options, Priorities, Source, read_options
from ntkmtl.balance._read import (
    Losses,
    in_order,
    joint_losses,
    logarithms,
    read_loss,
    task_names,
    without_labels,
)
from ntkmtl.balance._recording import recorded_kernel
from ntkmtl.balance._run import run
from ntkmtl.balance._snapshot import Snapshot, StepRecorder
from ntkmtl.balance._step import BalanceResult, Samples, Step
from ntkmtl.balance._weigh import DECAY, Core
from ntkmtl.errors import NonFiniteError
from ntkmtl.graph import (
    FeaturesLike,
    add_to_grad,
    allow_retained_backward,
    leaves,
    plain_backward,
    require_repeatable,
)
from ntkmtl.kernel import ExtendedNTK, Probe, RememberInputs
from ntkmtl.kernel._corrected import ProbeCorrection
from ntkmtl.kernel._pooling import Pooling
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.weighting._base import Weighting
from ntkmtl.weighting._losses import logarithm

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

__all__ = ["Balancer"]

_REMINDERS = {"after_step": 10, "optimizer": 10, "end_epoch": 100}
"""Calls of ``backward`` after which a method that was never told what it needs says so."""


class Balancer:
    """Weighs k task losses and runs the backward pass.

    Call :meth:`backward` where plain training calls ``sum(losses).backward()``; everything else of
    the loop stays. Gradients are added to ``.grad`` as usual, so accumulation, clipping and any
    optimizer work; one that evaluates its closure several times per step needs :meth:`hold`. Where
    a method needs them, call :meth:`after_step` and :meth:`end_epoch`; for the others both do
    nothing.

    Args:
        method: A name from :func:`ntkmtl.weighting.names`, ``"module:Class"`` or
            ``"./file.py:Class"``, or a weighting.
        tasks: Number or names of all tasks; read off the first losses if None. Needed where the
            first batch does not show all of them.
        source: Where the kernel comes from: ``"representation"``, the tensors at which the shared
            part of the network ends, at next to no cost; ``"exact"``, the shared parameters, at one
            backward pass per task and mini-batch; ``"probe"``, random directions, see ``trunk``; or
            ``"auto"``, exact kernels as rarely as ``budget`` says, averaged in logarithms, right
            for any network. The method's own if None.
        pooling: How the representation's rows make a kernel: ``"blockwise"`` (the published code),
            ``"pooled"`` (Eq. 17), or ``"kernel"`` (joined with the kernel of the features, or of
            ``last_layer``).
        trunk: For ``source="probe"`` and ``"auto"``, the module that makes the features. Its last
            inputs are remembered by a hook, and it is run again at other parameters; nothing of it
            changes. Or a :class:`ntkmtl.Probe`, which has more settings.
        corrected: Whether probes correct the features' kernel, by a factor for each task that is
            averaged over steps, rather than stand in its place. True if None.
        probe: A :class:`ntkmtl.Probe`, in place of ``trunk`` and ``corrected``.
        budget: For ``source="auto"``, what a step may cost relative to plain training, as a mean
            over steps.
        minibatches: The paper's n. Above 1 the samples must be known: by losses of single samples,
            by ``batch_dim``, or by features.
        every: Compute the kernel in each ``every``-th step and keep the weights in between. Where
            tasks are absent at times, each one's steps count from its own last kernel.
        ema: Decay of a moving average of the eigenvalues (of the Gramian for Gramian methods); 0
            for none. For ``source="auto"`` that of their logarithms, 0.5 if it is 0. A task without
            a label keeps its average, and for methods that read eigenvalues still counts in the
            others' weights: tasks whose batches take turns are balanced by this.
        weight_heads: Whether the weights apply to the heads too, or to the shared part only. The
            method's own published form if None.
        shared: The shared parameters, where they are not to be found from the losses.
        hooked: True runs one ordinary backward pass of the weighted sum of the losses, so that
            every hook fires; False walks each head once and fills ``.grad`` itself. Chosen by what
            is there if None.
        last_layer: The trunk's last linear layer, for ``pooling="kernel"``: its exact kernel then
            stands in for the trunk's.
        batch_dim: Dimension of the samples in the features, or in the tensors of the cut. If None,
            0 for features of 2, 4 or more dimensions.
        process_group: The processes that train together; the default group if None. Where there are
            several, their mini-batches count as further mini-batches and all end with the same
            weights; ``.grad`` is left to DDP or FSDP to average, as in plain training.
        preset: ``"published"`` reproduces the published code of NTKMTL and NTKMTL-SR: the sum of
            the eigenvalues instead of their mean; for NTKMTL the shared gradient times k and then
            clipped to norm 1. (Its clipping call for NTKMTL-SR comes before the backward pass and
            has no effect, so there is none here.)
        memory_budget: Bytes that the exact source may use to keep k gradients and save one pass
            over the trunk.
        log_losses: Balance the logarithms of the losses instead, as the published code's log-MGDA,
            log-CAGrad and log-IMTL do. Reported weights are still those of the losses. The
            method's own published form if None. A loss of exactly 0 sends no gradient and is taken
            as it is.
        record: Looks at the kernel every so many steps; see :class:`ntkmtl.analysis.Recorder`. The
            run stays what it is without one.
        priorities: How much tasks matter: weights are balanced first and then multiplied by
            p_i / mean(p). By name or in the order of the tasks; 1 for a name that is left out.
        length: How long the combined gradient is: ``"method"``, as the method leaves it;
            ``"plain"``, as long as plain training's, measured by the same kernel; ``"unit"``, as
            long as in the first step; or a number.
        **settings: Settings of the method, such as ``exponent``.

    Options about the kernel do nothing for methods that read losses only.

    Attributes:
        weighting: The method.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of the wrong kind, or the method has no such setting.

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
        self._told: set[str] = set()
        if self.options.probe is not None and self.options.shared is not None:
            self.options.probe.run_over(self.options.shared)
        if self.options.tasks is not None:
            self._set_tasks(self.options.tasks)
        if self.options.requires != "losses":
            allow_retained_backward()

    @property
    def method(self) -> str:
        """Name of the method, or of its class."""
        return self.options.method

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """Names of all tasks; None before the first batch if they were not named.

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
        """How the representation's rows make a kernel."""
        return self.options.pooling

    @property
    def minibatches(self) -> int:
        """The paper's n."""
        return self.options.minibatches

    @property
    def every(self) -> int:
        """Steps between two kernels."""
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
        """The shared parameters, where the user named them."""
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

    # ------------------------------------------------------------------ the one call

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
            losses: k losses: scalars, each the mean over the batch; or losses of single samples of
                shape (B,), or pairs ``(values, mask)`` of that shape, whose mean is taken. None for
                a task without a label in this batch, which then has weight 0, whose head is left
                alone, and which changes no other task's weight. A dict may leave such a task out.
            features: The shared representation that the heads read, where it is not to be found
                from the losses: one tensor, a tuple of tensors that every task reads, a list or
                dict with one tensor per task, or what :func:`ntkmtl.branch` returned. Every path
                from a loss to the parameters below must pass them.
            counts: Number of labels (valid pixels, say) per task and sample, shape (k, B), where a
                loss is not a plain mean over samples. Without them a mini-batch's rows are taken as
                its share of the batch's loss.
            scaler: The gradient scaler of mixed precision. Pass unscaled losses; then call
                ``scaler.step(optimizer)`` as usual.
            scale: What the gradients are multiplied by: 1 / m where m batches make one step of the
                optimizer. Weights do not change with it, as they would for many methods if the
                losses themselves were divided.
            extra: A loss outside the balance, shape (), added with weight 1.

        Returns:
            Weights and eigenvalues of this step.

        Raises:
            NonFiniteError: A loss or a gradient is NaN or infinite. No ``.grad`` was changed. With
                a scaler the step is marked to be skipped instead. Methods that read losses only
                look at the losses alone.
            ValueError: Losses or features do not fit the method or each other, the kernel asked for
                does not exist in this graph, or ``scale`` is not a positive number.
            TypeError: Losses are of the wrong kind.
        """
        names, losses = task_names(losses, self.tasks)
        if not 0.0 < _as_number("scale", scale) < math.inf:
            raise ValueError(f"scale must be positive and finite, found {scale}")
        given = (names, losses, features, counts, scaler, scale, extra)
        if torch.is_grad_enabled() and not _autocasts():
            return self._backward(*given)
        with contextlib.ExitStack() as modes:
            # Modes of the forward pass, in which a plain backward pass may stand as well. Products
            # of gradients are to keep their precision.
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
        if memory.names is None:
            self._set_tasks(names)
        assert memory.names is not None
        values = in_order(losses, memory.names)
        if counts is not None:
            values = without_labels(values, counts)
        active = _active(scaler)
        step = self._step(values, active, scale, extra)
        self._skipped = False
        if step is None:
            return self._without_labels(active, scale, extra)
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
            # Not by a backward pass: the graph may be half used.
            _mark_skipped(step.losses)
            return step.result(torch.zeros(len(step.present)), skipped=True)

    def _without_labels(
        self, active: GradScaler | None, scale: float, extra: Tensor | None
    ) -> BalanceResult:
        """Take a batch without any label: what is outside the balance counts all the same."""
        names, number = self.tasks, self._core.memory.step - 1
        assert names is not None
        weights = torch.zeros(len(names))
        whole = _extra(extra, 1.0)
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

    def _step(
        self,
        values: Sequence[Any],
        active: GradScaler | None,
        scale: float,
        extra: Tensor | None,
    ) -> Step | None:
        """Bring together what is known of a call; None if no task has a label."""
        options, memory = self.options, self._core.memory
        assert memory.names is not None
        ranks = Ranks.current(options.process_group)
        number = memory.step
        memory.step += 1
        found = [
            (i, known)
            for i, value in enumerate(values)
            if (known := read_loss(value, memory.names[i])) is not None
        ]
        here = [i for i, _ in found]
        live = [mean for _, (mean, _) in found]
        raw, present = joint_losses(live, here, len(memory.names), ranks)
        if not present:
            return None
        slope = None
        if options.log_losses or options.requires == "losses":
            (raw,) = read(raw)
        if options.log_losses:
            raw, slope = logarithms(raw, [memory.names[i] for i in present])
            if ranks is None:
                live = [logarithm(loss) for loss in live]
            else:
                # Of the mean over processes: the gradient of its logarithm is divided by that mean,
                # not by each process's own loss.
                slopes = [float(slope[present.index(i)]) for i in here]
                live = [loss * each for loss, each in zip(live, slopes, strict=True)]
        factor = 1.0 if active is None else float(active.get_scale())
        self._scaled = None
        if active is not None and self.weighting.needs_after_step:
            self._scaled = active, factor
        scaled = live if active is None else list(active.scale(live))
        if scale != 1.0:
            scaled = [loss * scale for loss in scaled]
        return Step(
            names=memory.names,
            losses=scaled,
            raw=raw,
            present=present,
            local=list(range(len(here))) if ranks is None else [present.index(i) for i in here],
            scale=scale * factor,
            number=number,
            like=live[0],
            slope=slope,
            ranks=ranks,
            parallel=dist.is_available() and dist.is_initialized(),
            extra=_extra(extra, scale * factor),
            constant=None if extra is None or extra.requires_grad else extra.detach().reshape(()),
            samples=_all_samples([samples for _, (_, samples) in found]),
            scaled=active is not None,
        )

    def _recorded(
        self, step: Step, features: FeaturesLike | None, counts: Tensor | None
    ) -> BalanceResult:
        """Run the step, and show it to the recorder if it wants to see it."""
        if self.options.requires != "losses" and step.losses:
            # Parts that are compiled later are compiled for several passes.
            if not self._core.looks & (self._core.looks - 1):
                require_repeatable(step.losses)
            self._core.looks += 1
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

    # ------------------------------------------------------------------ weights that stay

    def prepare_kernel(self, kernel: ExtendedNTK) -> ExtendedNTK:
        """Return the kernel as the method is to see it: a subclass may join mini-batches, say."""
        return kernel

    @property
    def can_hold(self) -> bool:
        """Whether weights stand for what the method does, so that :meth:`hold` can keep them."""
        return self.options.requires != "jacobian" and not self.weighting.has_head_objective

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Make weights once within the block.

        The first :meth:`backward` of the block makes weights, the others use them. For optimizers
        that evaluate the losses several times in one step, and must compare values of one function:
        L-BFGS, SAM; or for micro-batches of one step.

        Raises:
            ValueError: The method combines gradients entry by entry, so that no weights stand for
                what it does.

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
            yield  # within another block, whose weights stay
            return
        self._core.held = {}
        try:
            yield
        finally:
            self._core.held = None

    def _hold(self, result: BalanceResult, step: Step) -> None:
        """Note the weights of what is balanced, where a block keeps them."""
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
        """Print where the shared part of the network ends, as seen from the losses.

        Nothing is differentiated and no ``.grad`` changes.

        Args:
            losses: As in :meth:`backward`.
            features: As in :meth:`backward`, to see whether they cut every path.
            model: Whose parameters' names are to be used.

        Returns:
            What was printed, as data.

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
        return explanation(self._core, values, features, model)

    # ------------------------------------------------------------------ what methods are told

    @with_cpu_default
    def after_step(self, losses: Losses | Callable[[], Losses]) -> None:
        """Show the method the losses on the same batch after the optimizer's step.

        Does nothing for methods that do not need it, nor after a step that the scaler skipped
        (call it after ``scaler.update()``); hand over a function to save the work there.

        Args:
            losses: As in :meth:`backward`, or a function without arguments that returns them. It is
                called as it is, so that losses with input derivatives work; where there are none,
                let it run under ``torch.no_grad()``, which is quicker.

        Raises:
            NonFiniteError: A loss is NaN or infinite. The method has learned nothing from the step,
                which the optimizer has taken all the same.
        """
        self._told.add("after_step")
        if not self.weighting.needs_after_step or self._skipped or self._overflowed():
            return
        if callable(losses):
            losses = losses()
        memory = self._core.memory
        names, losses = task_names(losses, memory.names)
        if memory.names is None:
            self._set_tasks(names)
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
        """Whether the scaler has found an overflow since: it lowers its scale then."""
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
        """Tell the method that an epoch is over. Does nothing where that does not matter."""
        self._told.add("end_epoch")
        self.weighting.end_epoch()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the method learns by the optimizer; give it to the optimizer as well."""
        self._told.add("optimizer")
        return self.weighting.parameters()

    def _remind(self, step: Step) -> None:
        """Warn once where a method does not learn because something is never called."""
        if step.number not in _REMINDERS.values():
            return
        for what, advice in self.weighting.needs():
            if step.number == _REMINDERS[what] and what not in self._told:
                warn(f"{self.method} has not learned anything in {step.number} steps: {advice}")

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on besides its input.

        One flat dict of tensors, which ``torch.save`` and safetensors take.
        """
        correction, probe = self._core.correction, self.options.probe
        return pack(
            {
                "method": self.method,
                "source": f"{self.options.source}, {self.options.pooling}",
                "memory": self._core.memory.state(),
                "probe": None if probe is None else probe.state_dict(),
                "correction": None if correction is None else correction.state_dict(),
                "weighting": self.weighting.state_dict(),
            }
        )

    @with_cpu_default
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            ValueError: It is another method's, or holds other keys.
        """
        found = unpack(state)
        expected = {"method", "source", "memory", "probe", "correction", "weighting"}
        if set(found) != expected:
            raise ValueError(
                f"this is no state of a Balancer: it holds {sorted(found)}, expected "
                f"{sorted(expected)}"
            )
        if found["method"] != self.method:
            raise ValueError(f"the state is of method {found['method']!r}, this is {self.method!r}")
        memory, options = found["memory"], self.options
        entries = set(self._core.memory.state())
        if not isinstance(memory, Mapping) or set(memory) != entries:
            holds = sorted(memory) if isinstance(memory, Mapping) else type(memory)
            raise ValueError(
                f"this is no state of this version's Balancer: its memory holds {holds}, expected "
                f"{sorted(entries)}"
            )
        own = f"{options.source}, {options.pooling}"
        averaged = memory["log_total"] is not None or memory["average"] is not None
        if averaged and found["source"] != own:
            raise ValueError(
                f"the state averages the kernel of {found['source']}, this reads that of {own}"
            )
        names = memory["names"]
        mine = self._core.memory.names
        if names is not None and mine is not None and tuple(names) != mine:
            raise ValueError(f"the state has tasks {list(names)}, this {list(mine)}")
        if names is not None and mine is None:
            self._set_tasks(tuple(names))
        parts = {"probe": options.probe, "correction": self._core.correction}
        for name, part in parts.items():
            if (part is None) != (found[name] is None):
                raise ValueError(
                    f"the state is {'without' if found[name] is None else 'with'} a {name}, this "
                    f"is {'without' if part is None else 'with'} one: source, trunk and corrected "
                    "must be as they were"
                )
        self.weighting.load_state_dict(found["weighting"])
        if (known := self._core.memory.names) is not None:
            # A state from before the first step knows of no tasks, and the next batch may have
            # labels for some of them only.
            self.weighting.prepare(len(known), torch.device("cpu"))
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(found[name])
        self._core.memory.load(memory, options.ema or DECAY)

    def _set_tasks(self, names: tuple[str, ...]) -> None:
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be one or more different names, found {list(names)}")
        probe = self.options.probe
        if probe is not None and probe.corrected:
            self._core.correction = ProbeCorrection(len(names))
        self.weighting.name_tasks(names)
        self._core.require_priorities(names)
        self.weighting.prepare(len(names), torch.device("cpu"))
        self._core.memory.names = names

    def reuses(self, tasks: Sequence[int] | Tensor | None = None) -> bool:
        """Whether a call now would reuse weights (``every``) rather than make a kernel.

        Each task's weight is recomputed in the first of its steps that comes ``every`` or more
        steps after the one it was made in, so tasks whose batches take turns are all looked at.

        Args:
            tasks: Positions of the tasks that have a loss; all of them if None.

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
    """Whether operations would be run in lower precision."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _mark_skipped(losses: Sequence[Tensor]) -> None:
    """Let a gradient scaler find what makes it skip a step."""
    add_to_grad(
        (p, torch.full_like(p, math.inf, memory_format=torch.contiguous_format))
        for p in leaves(losses)[0]
    )


def _as_number(name: str, value: Any) -> float:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, found {value!r}")
    return float(value)


def _active(scaler: Any) -> GradScaler | None:
    """Return a gradient scaler that is at work.

    Raises:
        TypeError: It is none.
    """
    if scaler is None:
        return None
    if not all(hasattr(scaler, name) for name in ("is_enabled", "scale", "get_scale")):
        raise TypeError(
            f"scaler must be a gradient scaler (torch.amp.GradScaler) or None, found {scaler!r}"
        )
    active: GradScaler | None = scaler if scaler.is_enabled() else None
    return active


def _extra(extra: Any, factor: float) -> Tensor | None:
    """Return what is added outside the balance, times the gradient scale.

    Raises:
        TypeError: It is no tensor.
        ValueError: It is no scalar.
    """
    if extra is None:
        return None
    if not isinstance(extra, Tensor):
        raise TypeError(f"extra must be a tensor or None, found {type(extra)}")
    if extra.numel() != 1:
        raise ValueError(f"extra must be a scalar, found shape {tuple(extra.shape)}")
    if extra.is_complex():
        raise ValueError("extra is complex; a loss is a real number: take its real part")
    if not extra.requires_grad:
        return None
    whole = extra.reshape(())
    return whole if factor == 1.0 else whole * factor


def _all_samples(samples: list[Samples | None]) -> list[Samples] | None:
    """Return losses of single samples, if they were given for every task."""
    known = [s for s in samples if s is not None]
    return known if known and len(known) == len(samples) else None
