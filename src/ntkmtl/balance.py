"""The Balancer: the one call that a training loop makes instead of ``sum(losses).backward()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl.errors import NonFiniteError
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._autograd import (
    HeadGraph,
    TaskGradients,
    add_to_grad,
    feature_gradients,
    has_hooks,
    head_graph,
    leaves,
    path_around,
    require_cut,
    trainable,
    vjp,
)
from ntkmtl.kernel._features import Features, FeaturesLike
from ntkmtl.kernel._partition import Partition, require_counts
from ntkmtl.kernel._pooling import POOLINGS, Pooling
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._sources import (
    exact_kernel,
    representation_kernel,
    rows_through_features,
    shared_parameters,
)
from ntkmtl.weighting import create, spec
from ntkmtl.weighting._base import Weighting

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

__all__ = ["BalanceResult", "Balancer", "Losses", "Source"]

Losses = Sequence[Tensor | None] | Mapping[str, Tensor | None]
Source = Literal["representation", "exact"]
SOURCES: tuple[Source, ...] = ("representation", "exact")


@dataclass(frozen=True)
class BalanceResult:
    """What one call of :meth:`Balancer.backward` found.

    Attributes:
        weights: Task weights, shape (k,), 0 for a task without a label in this batch. For
            loss-only methods the effective ones, d total / d l_i.
        eigenvalues: Largest eigenvalue of each task's kernel, shape (k,), NaN for a task without a
            label; None if the method reads none, or reuses weights in this step (``every``).
        kernel: The kernel of the tasks with labels that the weights were made of, None if there is
            none.
        skipped: Whether a gradient scaler was told to skip this step.
    """

    weights: Tensor
    eigenvalues: Tensor | None = None
    kernel: ExtendedNTK | None = None
    skipped: bool = False


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
            no cost; or ``"exact"``, the shared parameters, at one pass over the trunk per task and
            mini-batch. The method's own if None.
        pooling: How the representation's rows make a kernel: ``"pooled"`` (Eq. 17),
            ``"blockwise"`` (the published code), or ``"kernel"`` (joined with the kernel of the
            features, or of ``last_layer``).
        minibatches: The paper's n.
        every: Compute the kernel in each ``every``-th step and keep the weights in between.
        ema: Decay of a moving average of the eigenvalues (of the Gramian for Gramian methods); 0
            for none.
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
        **options: Settings of the method, such as ``exponent``.

    Options about the kernel do nothing for methods that read losses only.

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

    def __init__(
        self,
        method: str | Weighting = "ntkmtl-sr",
        *,
        tasks: int | Sequence[str] | None = None,
        source: Source | None = None,
        pooling: Pooling | None = None,
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
        if self.source == "representation" and self.weighting.follows_parameters:
            raise ValueError(
                f"{self.method} follows gradients over steps, which features of different samples "
                "do not allow; set source='exact'"
            )
        if pooling is not None and reads != "losses" and self.source == "exact":
            raise ValueError(
                f"pooling={pooling!r} belongs to source='representation'; this is 'exact'"
            )
        fallback = "pooled" if reads == "eigenvalues" else "blockwise"
        self.pooling = _one_of("pooling", pooling or defaults.get("pooling", fallback), POOLINGS)
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
        self._last_layer = None if last_layer is None else _LastLayer(last_layer)
        if last_layer is not None and self.pooling != "kernel":
            raise ValueError(f"last_layer belongs to pooling='kernel', found {self.pooling!r}")
        self._step = 0
        self._skipped = False
        self._names: tuple[str, ...] | None = None
        self._cached: Tensor | None = None
        self._average: Tensor | None = None
        self._clean: tuple[frozenset[int], str] | None = None
        if tasks is not None:
            self._set_tasks(
                tuple(str(i) for i in range(tasks)) if isinstance(tasks, int) else tuple(tasks)
            )

    def __repr__(self) -> str:
        parts = [repr(self.method)]
        if self.weighting.reads != "losses":
            parts.append(f"source={self.source!r}")
            if self.source == "representation":
                parts.append(f"pooling={self.pooling!r}")
            parts.append(f"minibatches={self.minibatches}")
        return f"Balancer({', '.join(parts)})"

    # ------------------------------------------------------------------ the one call

    def backward(
        self,
        losses: Losses,
        features: FeaturesLike | None = None,
        *,
        counts: Tensor | None = None,
        scaler: GradScaler | None = None,
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

        Returns:
            Weights and eigenvalues of this step.

        Raises:
            NonFiniteError: A loss or a gradient is NaN or infinite. No ``.grad`` was changed. With
                a scaler the step is marked to be skipped instead.
            ValueError: Losses or features do not fit the method or each other.
        """
        device = next((x.device.type for x in _tensors(losses)), "cpu")
        if torch.is_autocast_enabled(device):
            # The forward pass is over: products of gradients are to keep their precision.
            with torch.autocast(device, enabled=False):
                return self._backward(losses, features, counts, scaler)
        return self._backward(losses, features, counts, scaler)

    def _backward(
        self,
        losses: Losses,
        features: FeaturesLike | None,
        counts: Tensor | None,
        scaler: GradScaler | None,
    ) -> BalanceResult:
        values = self._read(losses)
        if counts is not None:
            values = self._without_labels(values, counts)
        ranks = Ranks.current(self.process_group)
        step = self._step
        self._step += 1
        self._skipped = False
        here = [i for i, loss in enumerate(values) if loss is not None]
        live = [_scalar(cast("Tensor", values[i]), self._name(i)) for i in here]
        raw, present = self._joint_losses(live, here, ranks)
        if not present:
            return BalanceResult(torch.zeros(len(values)))
        slope = None
        if self.log_losses:
            raw, slope = self._logarithms(raw, present)
            live = [loss.log() for loss in live]
        active = scaler if scaler is not None and scaler.is_enabled() else None
        scaled = live if active is None else list(active.scale(live))
        job = _Step(
            losses=scaled,
            raw=raw,
            present=present,
            local=[present.index(i) for i in here],
            total=len(values),
            scale=1.0 if active is None else float(active.get_scale()),
            step=step,
            like=live[0],
            slope=slope,
            ranks=ranks,
        )
        try:
            self._require_finite(raw, job, "loss")
            if self.weighting.reads == "losses":
                weights = self._weigh(None, job)
                _plain(scaled, weights[job.local])
                self.weighting.accumulate(raw, job.index, job.scale)
                return BalanceResult(self._weights_of(weights, job))
            return self._with_kernel(job, features, counts)
        except NonFiniteError:
            if active is None:
                raise
            self._skipped = True
            # Not by a backward pass: the graph may be half used.
            add_to_grad(
                (p, torch.full_like(p, math.inf, memory_format=torch.contiguous_format))
                for p in leaves(scaled)[0]
            )
            return BalanceResult(self._spread(torch.zeros(len(present)), job), skipped=True)

    def after_step(self, losses: Losses | Callable[[], Losses]) -> None:
        """Show the method the losses on the same batch after the optimiser's step.

        Does nothing for methods that do not need it, nor after a step that the scaler skips; hand
        over a function to save the work there.

        Args:
            losses: As in :meth:`backward`, or a function without arguments that returns them, which
                is called without gradients.
        """
        if not self.weighting.needs_after_step or self._skipped:
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

    @property
    def needs_after_step(self) -> bool:
        """Whether :meth:`after_step` does anything."""
        return self.weighting.needs_after_step

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
            "cached": _copy(self._cached),
            "average": _copy(self._average),
            "weighting": {key: _copy(value) for key, value in self.weighting.state_dict().items()},
        }

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
        names = state["names"]
        if names is not None:
            if self._names is None:
                self._set_tasks(tuple(names))
            elif tuple(names) != self._names:
                raise ValueError(f"the state has tasks {list(names)}, this {list(self._names)}")
        self.weighting.load_state_dict(
            {key: _copy(value) for key, value in state["weighting"].items()}
        )
        self._step = int(state["step"])
        self._cached = _copy(state["cached"])
        self._average = _copy(state["average"])

    # ------------------------------------------------------------------ tasks

    def _set_tasks(self, names: tuple[str, ...]) -> None:
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be one or more different names, found {list(names)}")
        self._names = names
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
                    f"{self._name(position)}; shift the loss, or leave log_losses out"
                )
        return raw.log(), 1.0 / raw

    def _weights_of(self, weights: Tensor, job: _Step) -> Tensor:
        """Return the weights to report, those of the losses themselves, for all tasks."""
        return self._spread(weights if job.slope is None else weights * job.slope, job)

    def _spread(self, values: Tensor, job: _Step, missing: float = 0.0) -> Tensor:
        """Put the values of the tasks with labels at their places among all tasks."""
        dtype = torch.promote_types(job.like.dtype, torch.float32)
        full = torch.full((job.total,), missing, dtype=torch.float64)
        full[job.index] = values.to("cpu", torch.float64)
        return full.to(job.like.device, dtype)

    def _require_finite(self, values: Tensor, job: _Step, what: str) -> None:
        if not bool(values.isfinite().all()):
            position = int((~values.isfinite()).nonzero()[0])
            raise NonFiniteError(
                self._name(job.present[position]), job.step, what, float(values[position])
            )

    def _joint_losses(
        self, live: Sequence[Tensor], here: Sequence[int], ranks: Ranks | None
    ) -> tuple[Tensor, list[int]]:
        """Return float64 losses of the tasks with labels, and the positions of those tasks.

        With several processes: means over those that have a label.
        """
        own = (
            torch.stack([loss.detach() for loss in live]).to("cpu", torch.float64)
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

    # ------------------------------------------------------------------ weights

    def _weigh(self, kernel: ExtendedNTK | None, job: _Step) -> Tensor:
        weights = self.weighting(kernel, losses=job.raw, tasks=job.index)
        # Random methods draw on every process: the first one's draw counts.
        return weights if job.ranks is None else job.ranks.first(weights)

    def _observe(self, kernel: ExtendedNTK, job: _Step) -> tuple[Tensor, Tensor | None]:
        """Return weights, and eigenvalues where the method reads them."""
        kernel = kernel.cpu()
        if job.scale != 1.0:
            kernel = kernel / job.scale**2
        self._require_finite(kernel.blocks.sum(dim=(1, 2)), job, "gradient")
        job.kernel = kernel
        eigenvalues = None
        if self.weighting.reads == "eigenvalues":
            eigenvalues = self._smooth(kernel.max_eigenvalues(), job)
            kernel = ExtendedNTK(blocks=eigenvalues[:, None, None])
        elif self.weighting.reads == "gramian" and self.ema:
            smooth = self._smooth(kernel.gramian(), job)
            kernel = ExtendedNTK(smooth[:, None, :, None])
        weights = self._weigh(kernel, job)
        if self.every > 1:
            if self._cached is None:
                self._cached = torch.full((job.total,), math.nan, dtype=torch.float64)
            self._cached[job.index] = weights
        return weights, eigenvalues

    def _smooth(self, fresh: Tensor, job: _Step) -> Tensor:
        """Update the moving average of a vector or matrix over tasks at the tasks with labels."""
        if not self.ema:
            return fresh
        shape = (job.total,) * fresh.ndim
        if self._average is None:
            self._average = torch.full(shape, math.nan, dtype=torch.float64)
        at = (job.index,) if fresh.ndim == 1 else (job.index[:, None], job.index[None, :])
        old = self._average[at]
        mixed = torch.where(old.isnan(), fresh, self.ema * old + (1.0 - self.ema) * fresh)
        self._average[at] = mixed
        return mixed

    def _reusable(self, job: _Step) -> Tensor | None:
        """Return the weights of the last kernel, if this step is to reuse them and can."""
        if job.step % self.every == 0 or self._cached is None:
            return None
        cached = self._cached[job.index]
        return None if bool(cached.isnan().any()) else cached

    # ------------------------------------------------------------------ methods that read a kernel

    def _with_kernel(
        self, job: _Step, features: FeaturesLike | None, counts: Tensor | None
    ) -> BalanceResult:
        if features is None and self._last_layer is not None:
            raise ValueError("last_layer needs features to be passed as well")
        if features is None:
            if self.source == "representation":
                raise ValueError(
                    f"{self.method} reads the kernel of the shared representation: pass "
                    "features=z, the tensor that the heads read, or set source='exact' and shared"
                )
            if self.shared is None:
                raise ValueError(
                    f"{self.method} needs to know what is shared: pass features=z, the tensor that "
                    "the heads read, or Balancer(..., shared=list of shared parameters)"
                )
            return self._around_features(job, self.shared, None)
        names = [self._name(i) for i in range(job.total)]
        layer = self._last_layer
        if layer is not None:
            features = layer.output()
        whole = Features.of(features, names, self.batch_dim)
        cut = whole.select([job.present[i] for i in job.local])
        graph = head_graph(job.losses, cut)
        if graph.crosses and whole.root is not None:
            # Losses that come out of one operation (stack, unbind) reach every head's view.
            whole = cut = whole.joined()
            graph = head_graph(job.losses, cut)
        require_cut(graph, [self._local_name(i, job) for i in range(len(job.local))])
        around = self._around(graph, cut)
        hooked = self._is_hooked(graph, around, job)
        partition = self._partition(cut, counts, job)
        if around and self.source == "exact":
            # Rows of z do not carry all of the gradient: differentiate the losses themselves.
            if partition.minibatches > 1:
                raise ValueError(
                    f"{around}, so the exact kernel of {partition.minibatches} mini-batches cannot "
                    "be had through them; use minibatches=1"
                )
            shared = self.shared if self.shared is not None else shared_parameters(cut)
            return self._around_features(job, shared, True)
        weights = self._reusable(job)
        if weights is not None:
            if hooked:
                self._ordinary(job, cut, weights, around)
            else:
                gradients = feature_gradients(job.losses, cut, graph, retain=False)
                self._require_finite_heads(gradients, job)
                self._require_finite_features(gradients, job)
                self._fill(gradients, cut, weights, job)
            return BalanceResult(self._weights_of(weights, job))
        gradients = feature_gradients(job.losses, cut, None if hooked else graph, retain=hooked)
        if not hooked:
            self._require_finite_heads(gradients, job)
        if self.weighting.reads == "jacobian":
            return self._combine_entries(gradients, cut, job, hooked)
        full = self.weighting.reads != "eigenvalues"
        if full and cut.separate and self.source == "representation":
            raise ValueError(
                f"{self.method} needs the blocks between tasks, which do not exist where each task "
                "has a representation of its own; set source='exact'"
            )
        jacobian = None
        parameters: list[Tensor] = []
        known = _with_zeros(gradients, whole, job)
        everywhere = whole.select(job.present)
        if self.source == "representation":
            inputs, constant = (None, 0.0) if layer is None else layer.kernel()
            kernel = representation_kernel(
                known,
                everywhere,
                partition,
                self.pooling,
                inputs=inputs,
                constant=constant,
                full=full,
                ranks=job.ranks,
            )
        else:
            parameters = self.shared if self.shared is not None else shared_parameters(cut)
            # Parameters named by the user may be a part of the trunk; the rest needs a pass too.
            whole_trunk = self.shared is None
            keep = not hooked and whole_trunk and self._may_keep(parameters, job, full)
            kernel, jacobian = exact_kernel(
                rows_through_features(known, everywhere, parameters, partition, release=keep),
                len(job.present),
                partition.shares,
                full=full,
                keep=keep,
                ranks=job.ranks,
            )
        if job.ranks is not None:
            shares = partition.shares.expand(len(job.present), -1)
            kernel = kernel.with_shares(job.ranks.shares(shares, job.has_label))
        weights, eigenvalues = self._observe(kernel, job)
        if hooked:
            self._ordinary(job, cut, weights, around)
        else:
            self._fill(gradients, cut, weights, job, jacobian, parameters)
        return self._result(weights, eigenvalues, job)

    def _result(self, weights: Tensor, eigenvalues: Tensor | None, job: _Step) -> BalanceResult:
        return BalanceResult(
            self._weights_of(weights, job),
            None if eigenvalues is None else self._spread(eigenvalues, job, math.nan),
            job.kernel,
        )

    def _partition(self, cut: Features, counts: Tensor | None, job: _Step) -> Partition:
        if counts is not None:
            require_counts(counts, job.total, cut.batch)
            counts = counts[job.index.to(counts.device)]
        return Partition.of(
            cut.batch, self.minibatches, counts, published=self.preset == "published"
        )

    def _around(self, graph: HeadGraph, cut: Features) -> str:
        """Say how a loss reaches the trunk other than through the features, '' if none does.

        Walking the trunk costs more than a small network's whole step, so where there is one tensor
        the answer is kept until another set of head parameters shows up, as with a new path.
        """
        if len(cut.outputs) > 1:
            return path_around(graph, cut)
        key = frozenset(id(p) for head in graph.parameters for p in head)
        if self._clean is None or self._clean[0] != key:
            self._clean = (key, path_around(graph, cut))
        return self._clean[1]

    def _is_hooked(self, graph: HeadGraph, around: str, job: _Step) -> bool:
        if self.hooked is False and around:
            raise ValueError(f"{around}, so their gradients cannot be told apart; use hooked=True")
        if self.hooked is not None:
            return self.hooked
        # DDP's own hooks cannot be seen from here, and wait for a backward pass even where there is
        # one process only.
        return (
            bool(around)
            or (dist.is_available() and dist.is_initialized())
            or any(has_hooks(p) for head in graph.parameters for p in head)
        )

    def _may_keep(self, parameters: Sequence[Tensor], job: _Step, full: bool) -> bool:
        if any(has_hooks(p) for p in parameters):
            return False
        if full and self.minibatches == 1:
            return True  # the gradients are in memory anyway
        size = sum(p.numel() * p.element_size() for p in parameters)
        return size * len(job.present) <= self.memory_budget

    def _require_finite_features(self, gradients: TaskGradients, job: _Step) -> None:
        peaks = [torch.stack([g.abs().amax() for g in per_task]) for per_task in gradients.features]
        self._require_finite(torch.stack(peaks).amax(dim=0), job, "gradient")

    def _require_finite_heads(self, gradients: TaskGradients, job: _Step) -> None:
        flat = [g for head in gradients.heads for _, g in head]
        if not flat:
            return
        norms = torch.stack(torch._foreach_norm(flat)).tolist()
        if all(map(math.isfinite, norms)):
            return
        start = 0
        worst = []
        for head in gradients.heads:
            part = norms[start : start + len(head)]
            start += len(head)
            # A norm may overflow where no entry does.
            fine = all(
                math.isfinite(norm) or bool(g.isfinite().all())
                for norm, (_, g) in zip(part, head, strict=True)
            )
            worst.append(0.0 if fine else next(x for x in part if not math.isfinite(x)))
        self._require_finite(torch.tensor(worst, dtype=torch.float64), job, "gradient")

    def _combine_entries(
        self, gradients: TaskGradients, cut: Features, job: _Step, hooked: bool
    ) -> BalanceResult:
        """Let the method combine the gradients entry by entry."""
        self._require_alone(job)
        if hooked:
            raise ValueError(
                f"{self.method} changes gradients entry by entry, which one ordinary backward pass "
                "cannot; it needs hooked=False and a clean cut at the features"
            )
        if cut.separate:
            raise ValueError(
                f"{self.method} compares the tasks' gradients, which needs a representation that "
                "they share"
            )
        k = len(job.losses)
        if self.source == "representation":
            outputs = cut.outputs
            matrix = torch.cat(
                [torch.stack(per_task).flatten(1) for per_task in gradients.features], dim=1
            )
        else:
            trunk = shared_parameters(cut)
            parameters = self.shared if self.shared is not None else trunk
            chosen = {id(p) for p in parameters}
            rest = [p for p in trunk if id(p) not in chosen]
            whole = Partition.of(cut.batch, 1)
            rows = rows_through_features(gradients, cut, parameters, whole, release=not rest)
            matrix = torch.cat([rows(i) for i in range(k)])
        self._require_finite(matrix.abs().amax(dim=1).to("cpu", torch.float64), job, "gradient")
        combined, kept = self._combine(matrix, job)
        self._add_heads(gradients, [1.0] * k)
        if self.source == "representation":
            sizes = [t.numel() for t in outputs]
            torch.autograd.backward(
                outputs,
                [part.view_as(t) for part, t in zip(combined.split(sizes), outputs, strict=True)],
            )
        else:
            if rest:
                torch.autograd.backward(
                    cut.outputs,
                    [_weighted_sum(per_task, [1.0] * k) for per_task in gradients.features],
                    inputs=rest,
                )
            _add_flat(parameters, combined)
        return BalanceResult(self._weights_of(kept, job))

    def _combine(self, matrix: Tensor, job: _Step) -> tuple[Tensor, Tensor]:
        """Show the method the gradients without the gradient scale, and put it back after."""
        if job.scale == 1.0:
            return self.weighting.combine(matrix, job.raw, job.index)
        combined, weights = self.weighting.combine(matrix / job.scale, job.raw, job.index)
        return combined * job.scale, weights

    def _require_alone(self, job: _Step) -> None:
        if job.ranks is not None:
            raise ValueError(
                f"{self.method} combines gradients entry by entry, which would need those of all "
                f"{job.ranks.size} processes on each; it works in a single process only"
            )

    def _local_name(self, position: int, job: _Step) -> str:
        return self._name(job.present[job.local[position]])

    def _around_features(
        self, job: _Step, shared: list[Tensor], hooked: bool | None
    ) -> BalanceResult:
        """The exact source from the losses themselves, without features to cut the graph at."""
        if self.minibatches > 1:
            raise ValueError(
                f"{self.minibatches} mini-batches need features to split: pass features=z, or use "
                "minibatches=1"
            )
        k = len(job.present)
        local = dict(zip(job.local, job.losses, strict=True))
        if hooked is None:
            together = dist.is_available() and dist.is_initialized()
            hooked = self.hooked if self.hooked is not None else together

        def row(task: int) -> Tensor:
            if task in local:
                return vjp((local[task],), shared, None)[None]
            return torch.cat([torch.zeros_like(p).reshape(-1) for p in shared])[None]

        hooks = any(has_hooks(p) for p in shared)
        ordinary = self.weight_heads and (bool(hooked) or hooks)
        weights = self._reusable(job)
        eigenvalues = None
        jacobian = None
        kept = None
        if weights is None:
            if self.weighting.reads == "jacobian":
                self._require_alone(job)
                matrix = torch.cat([row(i) for i in range(k)])
                peaks = matrix.abs().amax(dim=1).to("cpu", torch.float64)
                self._require_finite(peaks, job, "gradient")
                kept, weights = self._combine(matrix, job)
            else:
                full = self.weighting.reads != "eigenvalues"
                kernel, jacobian = exact_kernel(
                    row,
                    k,
                    torch.ones(1, 1, dtype=torch.float64),
                    full=full,
                    keep=not ordinary and self._may_keep(shared, job, full),
                    ranks=job.ranks,
                )
                if job.ranks is not None:
                    ones = torch.ones(k, 1, dtype=torch.float64)
                    kernel = kernel.with_shares(job.ranks.shares(ones, job.has_label))
                weights, eigenvalues = self._observe(kernel, job)
        factor = self._shared_factor(job)
        if ordinary and kept is None and factor == 1.0:
            _plain(job.losses, weights[job.local])
            return self._result(weights, eigenvalues, job)
        own = {id(p) for p in shared}
        heads = [p for p in leaves(job.losses)[0] if id(p) not in own]
        on_heads = weights if self.weight_heads and kept is None else torch.ones(k)
        if heads:
            _plain(
                job.losses,
                on_heads[job.local],
                inputs=heads,
                retain=kept is None and jacobian is None,
            )
        if kept is not None:
            _add_flat(shared, kept)
        elif jacobian is not None:
            _add_flat(shared, (weights * factor).to(jacobian) @ jacobian)
        else:
            _plain(job.losses, (weights * factor)[job.local], inputs=shared)
        self._clip(shared, job)
        return self._result(weights, eigenvalues, job)

    # ------------------------------------------------------------------ filling .grad

    def _shared_factor(self, job: _Step) -> float:
        published = self.preset == "published" and self.method == "ntkmtl"
        return float(len(job.present)) if published else 1.0

    def _clip(self, shared: Sequence[Tensor], job: _Step) -> None:
        if self.preset == "published" and self.method == "ntkmtl":
            nn.utils.clip_grad_norm_(shared, job.scale)  # norm 1 before the gradient scale

    def _ordinary(self, job: _Step, cut: Features, weights: Tensor, around: str) -> None:
        """One backward pass of the weighted sum, every hook firing."""
        weights = weights[job.local]
        if self.weight_heads and self._shared_factor(job) == 1.0:
            _plain(job.losses, weights)
            return
        on_shared = weights * self._shared_factor(job)
        on_heads = weights if self.weight_heads else torch.ones(len(job.losses))
        if around or (cut.root is None and not cut.separate):
            if job.ranks is not None:
                raise ValueError(
                    "weight_heads=False with several processes needs a view of the features per "
                    "head: pass features=ntkmtl.branch(z, k) and give each head its own, or set "
                    "weight_heads=True"
                )
            # Two passes: one to the trunk's parameters, one to the heads'.
            trunk = shared_parameters(cut)
            own = {id(p) for p in trunk}
            heads = [p for p in leaves(job.losses)[0] if id(p) not in own]
            if heads:
                _plain(job.losses, on_heads, inputs=heads, retain=True)
            _plain(job.losses, on_shared, inputs=trunk)
            self._clip(trunk, job)
            return
        on_features = on_shared.tolist()
        handles = [
            view.register_hook(lambda g, c=w / h: g * c)
            for view, w, h in zip(cut.tensors, on_features, on_heads.tolist(), strict=True)
        ]
        try:
            _plain(job.losses, on_heads)
        finally:
            for handle in handles:
                handle.remove()
        if self.preset is not None:
            self._clip(self.shared if self.shared is not None else shared_parameters(cut), job)

    def _fill(
        self,
        gradients: TaskGradients,
        cut: Features,
        weights: Tensor,
        job: _Step,
        jacobian: Tensor | None = None,
        parameters: Sequence[Tensor] = (),
    ) -> None:
        """Add weighted gradients to ``.grad``: heads as they are known, the trunk by one pass."""
        factor = self._shared_factor(job)
        known: list[float] = weights.tolist()
        local = [known[i] for i in job.local]
        on_heads = local if self.weight_heads else [1.0] * len(local)
        on_trunk = [factor * w for w in local]
        if factor != 1.0 and not parameters:
            parameters = self.shared if self.shared is not None else shared_parameters(cut)
        self._add_heads(gradients, on_heads)
        if jacobian is not None:
            _add_flat(parameters, (weights * factor).to(jacobian) @ jacobian)
        elif cut.separate:
            own = gradients.features[0]
            torch.autograd.backward(
                cut.outputs, [g * w for g, w in zip(own, on_trunk, strict=True)]
            )
        else:
            torch.autograd.backward(
                cut.outputs,
                [
                    _weighted_sum(gradients.stacked(f), on_trunk)
                    for f in range(len(gradients.features))
                ],
            )
        self._clip(parameters, job)

    def _add_heads(self, gradients: TaskGradients, weights: Sequence[float]) -> None:
        pairs = [
            (parameter, gradient, weight)
            for head, weight in zip(gradients.heads, weights, strict=True)
            for parameter, gradient in head
        ]
        if not pairs:
            return
        # Multiplied out of place even by 1: the engine may hand out one tensor twice.
        scaled = torch._foreach_mul([g for _, g, _ in pairs], [w for _, _, w in pairs])
        add_to_grad(zip([p for p, _, _ in pairs], scaled, strict=True))


@dataclass
class _Step:
    """One call of backward.

    Attributes:
        losses: Losses of the tasks with labels in this process, times the gradient scale.
        raw: Losses of the tasks with labels in any process, float64 on the CPU, shape (k,).
        present: Positions of those among all tasks.
        local: Positions among ``present`` of the tasks with labels in this process.
        total: Number of all tasks.
        scale: The gradient scale, 1 for none.
        step: Number of the call.
        slope: What makes weights of the losses from weights of what is balanced; None for 1.
        like: A tensor whose device and dtype results take.
        ranks: The other processes, None if there are none.
        kernel: The kernel, once known.
    """

    losses: list[Tensor]
    raw: Tensor
    present: list[int]
    local: list[int]
    total: int
    scale: float
    step: int
    like: Tensor
    slope: Tensor | None = None
    ranks: Ranks | None = None
    kernel: ExtendedNTK | None = None

    def __post_init__(self) -> None:
        self.index = torch.tensor(self.present)

    @property
    def has_label(self) -> Tensor:
        """Whether this process has a label for each task of ``present``."""
        mask = torch.zeros(len(self.present), dtype=torch.bool)
        mask[self.local] = True
        return mask


class _LastLayer:
    """Remembers input and output of the trunk's last linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"last_layer must be a torch.nn.Linear, found {type(layer)}")
        self._bias = layer.bias is not None
        self._seen: tuple[Tensor, Tensor, int] | None = None
        layer.register_forward_hook(self._remember)

    def _remember(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._seen = (args[0].detach(), output, output._version)

    def __getstate__(self) -> dict[str, Any]:
        # The layer that it hangs on must stay copyable; what was seen belongs to one graph.
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
        """Return what the layer's own kernel between samples, a a^T + 1, is made of: a and the 1.

        The constant comes from the bias; without one it is 0.
        """
        assert self._seen is not None
        inputs = self._seen[0]
        if inputs.ndim != 2:
            raise ValueError(
                f"last_layer must be applied to samples of shape (B, d), found "
                f"{tuple(inputs.shape)}"
            )
        return inputs, 1.0 if self._bias else 0.0


def _with_zeros(gradients: TaskGradients, features: Features, job: _Step) -> TaskGradients:
    """Add zero gradients for tasks that have labels in other processes only."""
    if len(job.local) == len(job.present):
        return gradients
    place = {position: i for i, position in enumerate(job.local)}
    filled: list[list[Tensor]] = []
    for f, per_task in enumerate(gradients.features):
        row = []
        for position, task in enumerate(job.present):
            if position in place:
                row.append(per_task[place[position]])
            else:
                like = features.tensors[task if features.per_task else f]
                row.append(torch.zeros_like(like))
        filled.append(row)
    return TaskGradients(filled, gradients.heads)


def _tensors(losses: Losses) -> Iterator[Tensor]:
    values = losses.values() if isinstance(losses, Mapping) else losses
    return (value for value in values if isinstance(value, Tensor))


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


def _plain(
    losses: Sequence[Tensor],
    weights: Tensor | Sequence[float],
    inputs: Sequence[Tensor] | None = None,
    retain: bool = False,
) -> None:
    """One ordinary backward pass of the weighted sum."""
    values = weights.tolist() if isinstance(weights, Tensor) else weights
    torch.autograd.backward(
        list(losses),
        [torch.full_like(loss, w) for loss, w in zip(losses, values, strict=True)],
        retain_graph=retain,
        inputs=None if inputs is None else list(inputs),
    )


def _add_flat(parameters: Sequence[Tensor], flat: Tensor) -> None:
    sizes = [p.numel() for p in parameters]
    add_to_grad(
        (p, part.view_as(p).clone()) for p, part in zip(parameters, flat.split(sizes), strict=True)
    )


def _weighted_sum(gradients: Tensor | Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if isinstance(gradients, Tensor):
        combined: Tensor = torch.tensordot(gradients.new_tensor(weights), gradients, dims=1)
        return combined
    total: Tensor = gradients[0] * weights[0]
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        total.add_(gradient, alpha=weight)
    return total
