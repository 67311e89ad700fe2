"""The Balancer: the one call that a training loop makes instead of ``sum(losses).backward()``."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl._device import with_cpu_default
from ntkmtl.balance._choice import Choice
from ntkmtl.balance._fill import plain_backward
from ntkmtl.balance._kernel_step import KernelStep, backward_around_features, trainable_now
from ntkmtl.balance._last_layer import LastLayer
from ntkmtl.balance._recording import recorded_kernel
from ntkmtl.balance._step import BalanceResult, Step
from ntkmtl.errors import NonFiniteError
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._autograd import add_to_grad, leaves, trainable
from ntkmtl.kernel._corrected import ProbeCorrection
from ntkmtl.kernel._features import FeaturesLike
from ntkmtl.kernel._pooling import POOLINGS, Pooling
from ntkmtl.kernel._probe import Probe, RememberInputs
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.weighting import accepted_options, create, spec
from ntkmtl.weighting._base import Weighting

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

    from ntkmtl.analysis import Recorder

__all__ = ["Balancer", "Losses", "Source"]

Losses = Sequence[Tensor | None] | Mapping[str, Tensor | None]
Source = Literal["representation", "exact", "probe", "auto"]
SOURCES: tuple[Source, ...] = ("representation", "exact", "probe", "auto")


class Balancer:
    """Weighs k task losses and runs the backward pass.

    Call :meth:`backward` where plain training calls ``sum(losses).backward()``; everything else of
    the loop stays. Gradients are added to ``.grad`` as usual, so accumulation, clipping and any
    optimiser work. Where a method needs them, call :meth:`after_step` and :meth:`end_epoch`; for
    the others both do nothing.

    Args:
        method: A name from :func:`ntkmtl.weighting.names`, or a weighting.
        tasks: Number or names of all tasks; read off the first losses if None. Needed where the
            first batch does not show all of them.
        source: Where the kernel comes from: ``"representation"``, the shared features, at next to
            no cost; ``"exact"``, the shared parameters, at one pass over the trunk per task and
            mini-batch; ``"probe"``, random directions, see ``probes``; or ``"auto"``, the best of
            them that fits ``budget``. The method's own if None.
        pooling: How the representation's rows make a kernel: ``"pooled"`` (Eq. 17),
            ``"blockwise"`` (the published code), or ``"kernel"`` (joined with the kernel of the
            features, or of ``last_layer``).
        trunk: For ``source="probe"`` and ``"auto"``, the module that makes the features. Its last
            inputs are remembered by a hook, and it is run again at other parameters; nothing of it
            changes. Or a :class:`ntkmtl.kernel.RememberInputs`.
        probes: Random directions m of each probe.
        probe_every: Probe in each ``probe_every``-th kernel only, if probes correct.
        corrected: With ``source="probe"``, whether probes correct the features' kernel, by a factor
            for each task that is averaged over steps, rather than stand in its place.
        budget: For ``source="auto"``, what a step may cost relative to plain training.
        minibatches: The paper's n.
        every: Compute the kernel in each ``every``-th step and keep the weights in between. Where
            tasks are absent at times, each one's steps count from its own last kernel.
        ema: Decay of a moving average of the eigenvalues (of the Gramian for Gramian methods); 0
            for none. A task without a label keeps its average, and for methods that read
            eigenvalues still counts in the others' weights: tasks whose batches take turns are
            balanced by this.
        weight_heads: Whether the weights apply to the heads too, or to the shared part only. The
            method's own published form if None.
        shared: The shared parameters, where they cannot be found from features.
        hooked: True runs one ordinary backward pass of the weighted sum of the losses, so that
            every hook fires; False walks each head once and fills ``.grad`` itself. Chosen by what
            is there if None: hooked where parameters have hooks, or where a loss reaches
            the trunk around the features.
        last_layer: The trunk's last linear layer, for ``pooling="kernel"``: its exact kernel then
            stands in for the trunk's.
        batch_dim: Dimension of the samples in the features.
        process_group: The processes that train together; the default group if None. Where there are
            several, their mini-batches count as further mini-batches and all end with the same
            weights; ``.grad`` is left to DDP or FSDP to average, as in plain training.
        preset: ``"published"`` reproduces the published code of NTKMTL and NTKMTL-SR: the sum of
            the eigenvalues instead of their mean; for NTKMTL the shared gradient times k and then
            clipped to norm 1; for NTKMTL-SR blockwise pooling. (Its clipping call for NTKMTL-SR
            comes before the backward pass and has no effect, so there is none here.)
        memory_budget: Bytes that the exact source may use to keep k gradients and save one pass
            over the trunk.
        log_losses: Balance the logarithms of the losses instead, as the published code's log-MGDA,
            log-CAGrad and log-IMTL do. Reported weights are still those of the losses. The
            method's own published form if None.
        record: Looks at the kernel every so many steps; see :class:`ntkmtl.analysis.Recorder`. The
            training stays what it is without one.
        **options: Settings of the method, such as ``exponent``.

    Options about the kernel do nothing for methods that read losses only.

    Attributes:
        choice: What ``source="auto"`` settled on in its first step; None before, and for other
            sources.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: The method has no such setting.

    Example:
        >>> import torch
        >>> from ntkmtl import Balancer
        >>> trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> balancer = Balancer("ntkmtl-sr", minibatches=4)
        >>> x, y = torch.randn(8, 3), torch.randn(2, 8, 1)
        >>> z = trunk(x)
        >>> losses = [(head(z) - t).square().mean() for head, t in zip(heads, y)]
        >>> out = balancer.backward(losses, features=z)
        >>> out.weights.shape, trunk.weight.grad.shape
        (torch.Size([2]), torch.Size([4, 3]))
    """

    @with_cpu_default
    def __init__(
        self,
        method: str | Weighting = "ntkmtl-sr",
        *,
        tasks: int | Sequence[str] | None = None,
        source: Source | None = None,
        pooling: Pooling | None = None,
        trunk: nn.Module | RememberInputs | None = None,
        probes: int = 1,
        probe_every: int = 10,
        corrected: bool = True,
        budget: float = 1.1,
        minibatches: int | None = None,
        every: int = 1,
        ema: float = 0.0,
        weight_heads: bool | None = None,
        shared: Iterable[Tensor] | None = None,
        hooked: bool | None = None,
        last_layer: nn.Linear | None = None,
        batch_dim: int = 0,
        process_group: dist.ProcessGroup | None = None,
        preset: Literal["published"] | None = None,
        memory_budget: int = 1 << 28,
        log_losses: bool | None = None,
        record: Recorder | None = None,
        **options: Any,
    ) -> None:
        name = method if isinstance(method, str) else getattr(method, "name", None)
        defaults: dict[str, Any] = dict(spec(name).defaults) if name is not None else {}
        if preset is not None:
            if preset != "published":
                raise ValueError(f"preset must be 'published' or None, found {preset!r}")
            if name not in ("ntkmtl", "ntkmtl-sr") or not isinstance(method, str):
                raise ValueError(
                    f"preset='published' is for 'ntkmtl' and 'ntkmtl-sr' by name, found {method!r}"
                )
            options.setdefault("published", True)
            if name == "ntkmtl-sr":
                defaults["pooling"] = "blockwise"
        if isinstance(method, str):
            _refuse_mistyped(method, options)
            self.weighting = create(method, **options)
        elif isinstance(method, Weighting):
            if options:
                raise TypeError(
                    f"unknown options {sorted(options)}; settings of a weighting are given when it "
                    "is made"
                )
            self.weighting = method
        else:
            raise TypeError(
                f"method must be a name or a Weighting, found {type(method)}. Names are listed by "
                "ntkmtl.weighting.names()"
            )
        reads = self.weighting.reads
        self.method = name or type(self.weighting).__name__
        self.source = _one_of("source", source or defaults.get("source", "exact"), SOURCES)
        if self.source != "exact" and self.weighting.follows_parameters:
            raise ValueError(
                f"{self.method} follows gradients over steps, which features of different samples "
                "do not allow; set source='exact'"
            )
        if pooling is not None and reads != "losses" and self.source == "exact":
            raise ValueError(
                f"pooling={pooling!r} belongs to source='representation'; this is 'exact'"
            )
        if self.source in ("probe", "auto") and reads == "jacobian":
            raise ValueError(
                f"{self.method} works on the gradients entry by entry, which probes do not give; "
                "set source='exact' or 'representation'"
            )
        if self.source == "probe" and trunk is None:
            raise ValueError(
                "source='probe' runs the trunk again: give the module that makes the features as "
                "Balancer(..., trunk=model.trunk)"
            )
        if trunk is not None and self.source in ("exact", "representation"):
            raise ValueError(f"trunk belongs to source='probe' or 'auto'; this is {self.source!r}")
        if pooling is not None and self.source == "probe" and not corrected:
            raise ValueError(
                f"pooling={pooling!r} says which kernel of the features probes correct; "
                "corrected=False leaves it out"
            )
        if not budget > 1.0:
            raise ValueError(f"budget must be above 1, the cost of plain training, found {budget}")
        usual = defaults.get("pooling", "pooled" if reads == "eigenvalues" else "blockwise")
        if self.source in ("probe", "auto") and usual == "pooled" and reads != "kernel":
            usual = "blockwise"  # what is wrong with Eq. 17 is no factor that probes could correct
        self.pooling = _one_of("pooling", pooling or usual, POOLINGS)
        self.minibatches = _at_least_one(
            "minibatches", defaults.get("minibatches", 1) if minibatches is None else minibatches
        )
        self.every = _at_least_one("every", every)
        if not 0.0 <= ema < 1.0:
            raise ValueError(f"ema must be in [0, 1), found {ema}")
        self.ema = float(ema)
        if reads == "jacobian" and (self.every > 1 or self.ema):
            raise ValueError(f"{self.method} needs the gradients of each step: no every, no ema")
        if reads == "kernel" and self.ema:
            raise ValueError(f"{self.method} compares mini-batches of one step: no ema")
        if log_losses and self.weighting.takes_logarithms:
            raise ValueError(f"{self.method} takes logarithms of the losses already: no log_losses")
        self.log_losses = bool(
            defaults.get("log_losses", False) if log_losses is None else log_losses
        )
        self.weight_heads = bool(
            defaults.get("weight_heads", True) if weight_heads is None else weight_heads
        )
        self.shared = None if shared is None else trainable(shared)
        if self.shared is not None and not self.shared:
            raise ValueError("shared holds no parameter that requires a gradient")
        self.hooked = hooked
        self.batch_dim = batch_dim
        self.process_group = process_group
        self.preset = preset
        self.memory_budget = memory_budget
        self.record = record
        self._last_layer = None if last_layer is None else LastLayer(last_layer)
        if last_layer is not None and self.pooling != "kernel":
            raise ValueError(f"last_layer belongs to pooling='kernel', found {self.pooling!r}")
        self.probe_every = _at_least_one("probe_every", probe_every)
        self.corrected = bool(corrected)
        self.budget = float(budget)
        self.choice: Choice | None = None
        self._probe = (
            None
            if trunk is None
            else Probe(trunk, _at_least_one("probes", probes), parameters=self.shared)
        )
        self._correction: ProbeCorrection | None = None
        self._kernels = 0
        self._step = 0
        self._skipped = False
        self._names: tuple[str, ...] | None = None
        self._cached: Tensor | None = None
        self._average: Tensor | None = None
        self._measured: Tensor | None = None
        self._scaled: tuple[GradScaler, float] | None = None
        if isinstance(tasks, str):
            raise TypeError(f"tasks must be a number or a sequence of names, found {tasks!r}")
        if tasks is not None:
            self._set_tasks(
                tuple(str(i) for i in range(tasks)) if isinstance(tasks, int) else tuple(tasks)
            )

    def __repr__(self) -> str:
        parts = [repr(self.method)]
        if self.weighting.reads != "losses":
            parts.append(f"source={self.source!r}")
            if self.source in ("representation", "probe"):
                parts.append(f"pooling={self.pooling!r}")
            parts.append(f"minibatches={self.minibatches}")
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
    ) -> BalanceResult:
        """Weigh the losses and add the gradient of their weighted sum to ``.grad``.

        Args:
            losses: k scalar losses, each the mean over the batch; None for a task without a label
                in this batch, which then has weight 0, whose head is left alone, and which changes
                no other task's weight. A dict may leave such a task out.
            features: The shared representation that the heads read, with gradients: one tensor, a
                tuple of tensors that every task reads, a list or dict with one tensor per task, or
                what :func:`ntkmtl.branch` returned. Not needed by methods that read losses only,
                nor with ``shared`` and the exact source.
            counts: Number of labels (valid pixels, say) per task and sample, shape (k, B), where a
                loss is not a plain mean over samples. Without them a mini-batch's rows are taken as
                its share of the batch's loss.
            scaler: The gradient scaler of mixed precision. Pass unscaled losses; then call
                ``scaler.step(optimizer)`` as usual.
            scale: What the gradients are multiplied by: 1 / m where m batches make one step of the
                optimiser. Weights do not change with it, as they would for many methods if the
                losses themselves were divided.

        Returns:
            Weights and eigenvalues of this step.

        Raises:
            NonFiniteError: A loss or a gradient is NaN or infinite. No ``.grad`` was changed. With
                a scaler the step is marked to be skipped instead.
            ValueError: Losses or features do not fit the method or each other, or ``scale`` is not
                a positive number.
            TypeError: One tensor without dimensions stands where the k losses should.
        """
        given: object = losses
        if isinstance(given, Tensor) and given.ndim == 0:
            raise TypeError(
                "losses must be a sequence or a dict of k scalar tensors, one per task; found one "
                "scalar. Pass the losses before they are added up"
            )
        if not isinstance(given, Mapping | Sequence):
            losses = list(cast("Iterable[Tensor | None]", losses))  # a generator is read once
        if not 0.0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, found {scale}")
        device = next((x.device.type for x in _tensors(losses)), "cpu")
        if torch.is_autocast_enabled(device):
            # The forward pass is over: products of gradients are to keep their precision.
            with torch.autocast(device, enabled=False):
                return self._backward(losses, features, counts, scaler, scale)
        return self._backward(losses, features, counts, scaler, scale)

    def _backward(
        self,
        losses: Losses,
        features: FeaturesLike | None,
        counts: Tensor | None,
        scaler: GradScaler | None,
        scale: float,
    ) -> BalanceResult:
        values = self._read(losses)
        assert self._names is not None
        if counts is not None:
            values = self._without_labels(values, counts)
        ranks = Ranks.current(self.process_group)
        number = self._step
        self._step += 1
        self._skipped = False
        here = [i for i, loss in enumerate(values) if loss is not None]
        live = [_scalar(cast("Tensor", values[i]), self._names[i]) for i in here]
        raw, present = self._joint_losses(live, here, ranks)
        if not present:
            return BalanceResult(torch.zeros(len(values)))
        slope = None
        if self.log_losses:
            raw, slope = self._logarithms(raw, present)
            live = [loss.log() for loss in live]
        active = scaler if scaler is not None and scaler.is_enabled() else None
        factor = 1.0 if active is None else float(active.get_scale())
        self._scaled = None
        if active is not None and self.weighting.needs_after_step:
            self._scaled = active, factor
        scaled = live if active is None else list(active.scale(live))
        if scale != 1.0:
            scaled = [loss * scale for loss in scaled]
        step = Step(
            names=self._names,
            losses=scaled,
            raw=raw,
            present=present,
            local=list(range(len(here))) if ranks is None else [present.index(i) for i in here],
            scale=scale * factor,
            number=number,
            like=live[0],
            slope=slope,
            ranks=ranks,
        )
        try:
            step.require_finite(raw, "loss")
            recorded = None
            if self.record is not None and (wanted := self.record.wants(number)):
                recorded = recorded_kernel(self, self.record, step, features, counts)
            else:
                wanted = False
            result = self._weigh_and_differentiate(step, features, counts)
        except NonFiniteError:
            if active is None:
                raise
            self._skipped = True
            # Not by a backward pass: the graph may be half used.
            add_to_grad(
                (p, torch.full_like(p, math.inf, memory_format=torch.contiguous_format))
                for p in leaves(scaled)[0]
            )
            return step.result(torch.zeros(len(present)), skipped=True)
        if self.record is not None and wanted:
            self._show(self.record, step, result, recorded)
        return result

    def _show(
        self,
        record: Recorder,
        step: Step,
        result: BalanceResult,
        kernel: ExtendedNTK | None,
    ) -> None:
        from ntkmtl.analysis import Snapshot

        record(
            Snapshot(
                step=step.number,
                tasks=step.names,
                present=tuple(step.present),
                losses=step.raw.exp() if self.log_losses else step.raw,
                weights=result.weights.to("cpu", torch.float64),
                kernel=kernel,
            )
        )

    def _weigh_and_differentiate(
        self, step: Step, features: FeaturesLike | None, counts: Tensor | None
    ) -> BalanceResult:
        if self.weighting.reads == "losses":
            weights = self._weigh(None, step)
            plain_backward(step.losses, weights[step.local])
            self.weighting.accumulate(step.raw, step.index, step.scale)
            return step.result(weights)
        if self._last_layer is not None:
            if features is None:
                raise ValueError("last_layer needs features to be passed as well")
            features = self._last_layer.output()
        if features is not None:
            return KernelStep(self, step, features, counts).run()
        if self.source != "exact":
            raise ValueError(
                f"{self.method} reads the kernel of the shared representation: pass "
                "features=z, the tensor that the heads read, or set source='exact' and shared"
            )
        if self.shared is None:
            raise ValueError(
                f"{self.method} needs to know what is shared: pass features=z, the tensor that "
                "the heads read, or Balancer(..., shared=list of shared parameters)"
            )
        return backward_around_features(self, step, trainable_now(self.shared))

    @with_cpu_default
    def after_step(self, losses: Losses | Callable[[], Losses]) -> None:
        """Show the method the losses on the same batch after the optimiser's step.

        Does nothing for methods that do not need it, nor after a step that the scaler skipped
        (call it after ``scaler.update()``); hand over a function to save the work there.

        Args:
            losses: As in :meth:`backward`, or a function without arguments that returns them, which
                is called without gradients.

        Raises:
            NonFiniteError: A loss is NaN or infinite. The method has learned nothing from the step,
                which the optimiser has taken all the same.
        """
        if not self.weighting.needs_after_step or self._skipped or self._overflowed():
            return
        if callable(losses):
            with torch.no_grad():
                losses = losses()
        values = self._read(losses)
        here = [i for i, loss in enumerate(values) if loss is not None]
        live = [cast("Tensor", values[i]).reshape(()) for i in here]
        after, present = self._joint_losses(live, here, Ranks.current(self.process_group))
        for position, value in zip(present, after.tolist(), strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(self._name(position), self._step - 1, "loss", value)
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
        self.weighting.end_epoch()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the method learns by the optimiser; give it to the optimiser as well."""
        return self.weighting.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on besides its input.

        Holds tensors, numbers, strings and None only: ``torch.load(weights_only=True)`` reads it.
        """
        return {
            "method": self.method,
            "step": self._step,
            "names": None if self._names is None else list(self._names),
            "source": f"{self.source}, {self.pooling}",
            "cached": _copy(self._cached),
            "measured": _copy(self._measured),
            "average": _copy(self._average),
            "choice": None if self.choice is None else self.choice.state(),
            "kernels": self._kernels,
            "probe": None if self._probe is None else self._probe.state_dict(),
            "correction": None if self._correction is None else self._correction.state_dict(),
            "weighting": self.weighting.state_dict(),
        }

    @with_cpu_default
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: It is another method's, or holds other keys.
        """
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(
                f"this is no state of a Balancer: it holds {sorted(state)}, expected "
                f"{sorted(expected)}"
            )
        if state["method"] != self.method:
            raise ValueError(f"the state is of method {state['method']!r}, this is {self.method!r}")
        own = f"{self.source}, {self.pooling}"
        # What source="auto" settles on is loaded below.
        if state["average"] is not None and state["choice"] is None and state["source"] != own:
            raise ValueError(
                f"the state averages the kernel of {state['source']}, this reads that of {own}"
            )
        names = state["names"]
        if names is not None:
            if self._names is None:
                self._set_tasks(tuple(names))
            elif tuple(names) != self._names:
                raise ValueError(f"the state has tasks {list(names)}, this {list(self._names)}")
        parts = {name: getattr(self, f"_{name}") for name in ("probe", "correction")}
        for name, known in parts.items():
            if (known is None) != (state[name] is None):
                raise ValueError(
                    f"the state is {'without' if state[name] is None else 'with'} a {name}, this "
                    f"is {'without' if known is None else 'with'} one: source, trunk and corrected "
                    "must be as they were"
                )
        self.weighting.load_state_dict(state["weighting"])
        if self._names is not None:
            # A state from before the first step knows of no tasks, and the next batch may have
            # labels for some of them only.
            self.weighting.prepare(len(self._names), torch.device("cpu"))
        for name, known in parts.items():
            if known is not None:
                known.load_state_dict(state[name])
        if state["choice"] is not None:
            self._settle(Choice(**state["choice"]))
        self._kernels = int(state["kernels"])
        self._step = int(state["step"])
        self._cached = _copy(state["cached"])
        self._measured = _copy(state["measured"])
        self._average = _copy(state["average"])

    # ------------------------------------------------------------------ tasks

    def _set_tasks(self, names: tuple[str, ...]) -> None:
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be one or more different names, found {list(names)}")
        self._names = names
        if self._probe is not None and self.corrected:
            self._correction = ProbeCorrection(len(names))
        self.weighting.name_tasks(names)
        self.weighting.prepare(len(names), torch.device("cpu"))

    def _name(self, position: int) -> str:
        assert self._names is not None
        return self._names[position]

    def _read(self, losses: Losses) -> list[Tensor | None]:
        """Bring losses into the order of the tasks, which the first call settles."""
        if isinstance(losses, Mapping):
            if self._names is None:
                self._set_tasks(tuple(losses))
            assert self._names is not None
            unknown = sorted(set(losses) - set(self._names))
            if unknown:
                raise ValueError(
                    f"losses of unknown tasks {unknown}; the tasks are {list(self._names)}. Name "
                    "all of them with Balancer(..., tasks=[...])"
                )
            return [losses.get(name) for name in self._names]
        values = list(losses)
        if self._names is None:
            self._set_tasks(tuple(str(i) for i in range(len(values))))
        assert self._names is not None
        if len(values) != len(self._names):
            raise ValueError(
                f"found {len(values)} losses for {len(self._names)} tasks; give None for a task "
                "without a label"
            )
        return values

    def _without_labels(
        self, values: Sequence[Tensor | None], counts: Tensor
    ) -> list[Tensor | None]:
        """Take a task that ``counts`` gives no label in this batch as one without a loss."""
        if counts.ndim != 2 or len(counts) != len(values):
            raise ValueError(
                f"counts must have shape ({len(values)}, B), one number of labels per task and "
                f"sample, found {tuple(counts.shape)}"
            )
        empty = (counts == 0).all(dim=1).tolist()
        return [None if none else value for value, none in zip(values, empty, strict=True)]

    def _logarithms(self, raw: Tensor, present: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return log losses, not finite where the losses are not, and their slopes, 1 / loss."""
        for position, value in zip(present, raw.tolist(), strict=True):
            if -math.inf < value <= 0:
                raise ValueError(
                    f"log_losses needs positive losses, found {value} for task "
                    f"{self._name(position)}; shift the loss, or set log_losses=False"
                )
        return raw.log(), 1.0 / raw

    def _joint_losses(
        self, live: Sequence[Tensor], here: Sequence[int], ranks: Ranks | None
    ) -> tuple[Tensor, list[int]]:
        """Return float64 losses of the tasks with labels, and the positions of those tasks.

        With several processes: means over those that have a label.
        """
        own = (
            torch.stack(list(live)).detach().to("cpu", torch.float64)
            if live
            else torch.zeros(0, dtype=torch.float64)
        )
        if ranks is None:
            return own, list(here)
        assert self._names is not None
        table = torch.zeros(2, len(self._names), dtype=torch.float64)
        table[0, list(here)] = own
        table[1, list(here)] = 1.0
        tables = torch.stack(ranks.gather(table))
        if not bool(tables[:, 1].any(dim=1).all()):
            raise ValueError(
                "one of the processes has no label for any task in this batch; give every process "
                "a batch with at least one"
            )
        total, count = tables.sum(dim=0)
        present = count.nonzero().flatten().tolist()
        return (total / count)[present], present

    # ------------------------------------------------------------------ sources

    def _settle(self, choice: Choice) -> None:
        """Take over what ``source="auto"`` came to."""
        self.choice = choice
        self.source = cast("Source", choice.source)
        self.pooling = cast("Pooling", choice.pooling)
        self.every = max(self.every, choice.every)

    def _probe_due(self) -> bool:
        """Whether this kernel is to be probed. Counts it."""
        due = not self.corrected or self._kernels % self.probe_every == 0
        self._kernels += 1
        return due

    # ------------------------------------------------------------------ weights

    def _weigh(self, kernel: ExtendedNTK | None, step: Step) -> Tensor:
        weights = self.weighting(kernel, losses=step.raw, tasks=step.index)
        # Random methods draw on every process: the first one's draw counts.
        return weights if step.ranks is None else step.ranks.first(weights)

    def _observe(self, kernel: ExtendedNTK, step: Step) -> tuple[Tensor, Tensor | None]:
        """Return weights, and eigenvalues where the method reads them."""
        kernel = kernel.cpu()
        if step.scale != 1.0:
            kernel = kernel / step.scale**2
        step.require_finite(kernel.blocks.sum(dim=(1, 2)), "gradient")
        step.kernel = kernel
        if self.shared is not None and step.losses and not bool(kernel.blocks.any()):
            self._require_shared_below(step)
        eigenvalues = None
        if self.weighting.reads == "eigenvalues":
            solved = (
                kernel.max_eigenvalues()
                if step.ranks is None
                else step.ranks.max_eigenvalues(kernel)
            )
            eigenvalues = self._smooth(solved, step)
            weights = self._weigh_eigenvalues(eigenvalues, step)
        elif self.weighting.reads == "gramian" and self.ema:
            smooth = self._smooth(kernel.gramian(), step)
            weights = self._weigh(ExtendedNTK(smooth[:, None, :, None]), step)
        else:
            weights = self._weigh(kernel, step)
        if self.every > 1:
            if self._cached is None or self._measured is None:
                self._cached = torch.full((step.total,), math.nan, dtype=torch.float64)
                self._measured = torch.full((step.total,), -self.every, dtype=torch.int64)
            self._cached[step.index] = weights
            self._measured[step.index] = step.number
        return weights, eigenvalues

    def _require_shared_below(self, step: Step) -> None:
        """Refuse shared parameters that no loss depends on: every task's kernel is then zero.

        Raises:
            ValueError: They are another network's.
        """
        below = {id(p) for p in leaves(step.losses)[0]}
        if self.source == "exact" and not any(id(p) in below for p in self.shared or ()):
            raise ValueError(
                "no loss depends on the shared parameters. Was the network copied or made anew "
                "after the Balancer? Make the Balancer from the parameters of the one that trains"
            )

    def _weigh_eigenvalues(self, eigenvalues: Tensor, step: Step) -> Tensor:
        """Weigh by eigenvalues; with a moving average, against those of absent tasks as well.

        Tasks whose batches take turns are so balanced with each other.
        """
        if self._average is None or len(step.present) == step.total:
            return self._weigh(ExtendedNTK(blocks=eigenvalues[:, None, None]), step)
        known = (~self._average.isnan()).nonzero().flatten()
        all_weights = self.weighting(
            ExtendedNTK(blocks=self._average[known, None, None]), tasks=known
        )
        return all_weights[torch.searchsorted(known, step.index)]

    def _smooth(self, fresh: Tensor, step: Step) -> Tensor:
        """Update the moving average of a vector or matrix over tasks at the tasks with labels."""
        if not self.ema:
            return fresh
        shape = (step.total,) * fresh.ndim
        if self._average is None:
            self._average = torch.full(shape, math.nan, dtype=torch.float64)
        at = (step.index,) if fresh.ndim == 1 else (step.index[:, None], step.index[None, :])
        old = self._average[at]
        mixed = torch.where(old.isnan(), fresh, self.ema * old + (1.0 - self.ema) * fresh)
        self._average[at] = mixed
        return mixed

    def reuses(self, tasks: Sequence[int] | Tensor | None = None) -> bool:
        """Whether a call now would reuse weights (``every``) rather than make a kernel.

        Each task's weight is made anew in the first of its steps that comes ``every`` or more steps
        after the one it was made in, so tasks whose batches take turns are all looked at.

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
        at = slice(None) if tasks is None else torch.as_tensor(tasks)
        return self._young(self._step, at)

    def _young(self, number: int, tasks: Tensor | slice) -> bool:
        """Whether the weights of some tasks are not to be made anew in a step."""
        if self._measured is None:
            return False
        return bool((number - self._measured[tasks] < self.every).all())

    def _reusable(self, step: Step) -> Tensor | None:
        """Return the weights of the last kernel, if this step is to reuse them and can."""
        if self._cached is None or not self._young(step.number, step.index):
            return None
        return self._cached[step.index]


def _tensors(losses: Losses) -> Iterator[Tensor]:
    values = losses.values() if isinstance(losses, Mapping) else losses
    return (value for value in values if isinstance(value, Tensor))


def _refuse_mistyped(method: str, options: Mapping[str, Any]) -> None:
    """Raise where an option that the method does not have looks like one of the Balancer's own."""
    own = [
        p.name for p in inspect.signature(Balancer).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    for option in sorted(set(options) - set(accepted_options(method))):
        if close := difflib.get_close_matches(option, own, n=1, cutoff=0.75):
            raise TypeError(f"{method} has no option {option!r}; did you mean {close[0]!r}?")


def _one_of(name: str, value: Any, known: Sequence[Any]) -> Any:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}")
    return value


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, found {value!r}")
    return int(value)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _scalar(loss: Tensor, name: str) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss of task {name} must be a tensor or None, found {type(loss)}")
    if loss.numel() != 1:
        raise ValueError(
            f"the loss of task {name} must be a scalar, found shape {tuple(loss.shape)}; take its "
            "mean over the batch"
        )
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of task {name} does not require a gradient; give None for a task without a "
            "label in this batch"
        )
    return loss if loss.ndim == 0 else loss.reshape(())
