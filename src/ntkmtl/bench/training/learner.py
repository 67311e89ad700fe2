"""What a run trains with: the network, the Balancer, the optimizer and its schedule."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ntkmtl.analysis import Recorder
from ntkmtl.balance import Balancer
from ntkmtl.bench.compute.device import (
    Arithmetic,
    Evaluated,
    compile_heads,
    compiled,
)
from ntkmtl.bench.compute.environment import hardware, problem_version, versions
from ntkmtl.bench.compute.processes import ProcessGroup
from ntkmtl.bench.problems.base import MultiTaskModel, Problem, Recipe
from ntkmtl.bench.runs import RunConfig, RunMetric, canonical_json
from ntkmtl.bench.training.baselines import check_baseline
from ntkmtl.bench.training.spec import record_settings, reruns_trunk, steps_per_epoch, total_steps
from ntkmtl.kernel import ExtendedNTK, RememberInputs, branch
from ntkmtl.metrics import delta_m
from ntkmtl.weighting import spec as method_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ntkmtl.bench.problems.base import Split
    from ntkmtl.bench.training.spec import RunSpec

__all__ = [
    "Learner",
    "LearningRate",
    "join_minibatches",
    "learning_rate_factor",
    "text_seed",
    "validation_split",
]


WARM_UP = 0.1
"""Share of the steps over which the learning rate of ``one-cycle`` rises."""


def learning_rate_factor(step: int, total: int) -> float:
    """Return the learning rate of a step of ``one-cycle`` relative to its peak.

    A straight rise over the first tenth of the steps, then half a cosine down to almost 0.

    Args:
        step: Number of the step, from 0.
        total: Number of steps of the whole run.

    Example:
        >>> [round(learning_rate_factor(s, 20), 3) for s in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 0.993, 0.459, 0.007]
    """
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / (total + 1 - rise)))


class LearningRate:
    """Sets the learning rate of an optimizer as a recipe says.

    Args:
        recipe: The recipe; its schedule has been checked.
        optimizer: All its parameter groups get the same learning rate.
        total_steps: Number of steps of the whole run.
        metrics: What the validation split is judged by.
        reference: One number per metric, for ``"plateau"``; None for a single-task run, which
            is judged by its own metric.
    """

    def __init__(
        self,
        recipe: Recipe,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        metrics: Sequence[RunMetric],
        reference: Sequence[float] | None,
    ) -> None:
        self.recipe = recipe
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.higher_is_better = [metric.higher_is_better for metric in metrics]
        self.reference = reference
        self.plateau = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer,
                mode="min",
                factor=recipe.plateau_factor,
                patience=recipe.plateau_patience,
                # Any decrease counts. Torch's default threshold is relative to the best value so
                # far: once that is negative, as Delta-m may be, small increases would count too.
                threshold=0.0,
                min_lr=recipe.min_learning_rate,
            )
            if recipe.schedule == "plateau"
            else None
        )

    def before_step(self, step: int) -> None:
        """Set the learning rate of a step, counted from 0."""
        if self.recipe.schedule == "one-cycle":
            factor = learning_rate_factor(step, self.total_steps)
        elif self.recipe.schedule == "halved":
            steps_per_epoch = self.total_steps // self.recipe.epochs
            # Where the epochs are odd in number the first half is the shorter one.
            factor = 1.0 if step // steps_per_epoch < self.recipe.epochs // 2 else 0.5
        else:
            return
        rate = self.recipe.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def last(self) -> float:
        """The learning rate of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def end_epoch(self, validation: Sequence[float]) -> None:
        """Adapt to an epoch's metrics on the validation split."""
        if self.plateau is not None:
            self.plateau.step(self._judged(validation))

    def _judged(self, validation: Sequence[float]) -> float:
        if self.reference is not None:
            return float(delta_m(validation, self.reference, self.higher_is_better))
        signed = [
            -value if higher else value
            for value, higher in zip(validation, self.higher_is_better, strict=True)
        ]
        return sum(signed) / len(signed)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep; the optimizer keeps the learning rate itself."""
        return {} if self.plateau is None else dict(self.plateau.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned."""
        if self.plateau is not None:
            self.plateau.load_state_dict(dict(state))


class ForwardPass(nn.Module):
    """From a batch to the outputs, as the forward of one module: what DDP wraps.

    Args:
        model: The network.
        represent: Its trunk.
        heads: Number of heads.

    Attributes:
        views: What the heads read in the last pass; None for a network without a representation.
    """

    def __init__(self, model: MultiTaskModel, represent: Callable[[Any], Any], heads: int) -> None:
        super().__init__()
        self.model = model
        self.heads = heads
        # In a tuple, as a module would be registered a second time.
        self._represent = (represent,)
        self.views: Any = None

    def forward(self, batch: Any) -> list[Tensor]:
        """Return one output per head."""
        features = self._represent[0](batch)
        if not self.model.has_representation:
            return self.model.predict(features)
        # A view of the features per head lets one engine call find every head's gradient.
        self.views = branch(features, self.heads) if isinstance(features, Tensor) else features
        return self.model.predict(self.views)


class Learner:
    """A network and what trains it, made from the seed.

    Args:
        problem: The problem.
        spec: What is asked for.
        identity: What determines the run's numbers, by
            :func:`ntkmtl.bench.training.spec.run_identity`.
        group: The processes that train together; this one alone if None.

    Attributes:
        forward: From a batch to the outputs; wrapped by DDP where several processes train.
        evaluated: The network as problems evaluate it, on batches from the CPU.
        recorder: Records the kernel, None if that was not asked for.
        baseline: The baseline of a method that learns from scores, None for the others.

    Raises:
        ValueError: The parts do not fit each other, or the method needs a baseline and got none.
        DeviceError: The device lacks the recipe's precision, or a compiler is missing.
    """

    def __init__(
        self,
        problem: Problem,
        spec: RunSpec,
        identity: Mapping[str, Any],
        group: ProcessGroup | None = None,
    ) -> None:
        self.group = group or ProcessGroup(torch.device("cpu"))
        self.device = self.group.device
        self.problem = problem
        self.spec = spec
        self.identity = identity
        self.recipe = Recipe(**identity["recipe"])
        # None for all, which the problem may treat faster.
        self.chosen_tasks = None if spec.single_task is None else (spec.single_task,)
        self.tasks: tuple[str, ...] = tuple(identity["tasks"])
        self.metrics = tuple(RunMetric(**metric) for metric in identity["metrics"])
        self.split = validation_split(problem)
        self.steps_per_epoch = steps_per_epoch(problem, self.recipe)
        self.adam_steps = self.steps_per_epoch * self.recipe.epochs
        self.total_steps = total_steps(problem, self.recipe)
        self.arithmetic = Arithmetic(self.recipe.precision, self.device)

        torch.manual_seed(spec.seed)
        self.model = problem.model(self.chosen_tasks)
        if self.device.type != "cpu":
            self.model.to(self.device)
        self.record_settings = record_settings(spec.record, self.recipe)
        settings = self.record_settings
        self.recorder = None if settings is None else Recorder(**settings)
        represent = self._make_balancer()
        self.baseline = self._checked_baseline(spec.baseline)
        self.make_optimizer()
        if self.recipe.compile:
            represent = compiled(represent, self.device)
            compile_heads(self.model)
        self.passing = ForwardPass(self.model, represent, len(self.tasks))
        self.forward: nn.Module = self.passing
        self.evaluated: MultiTaskModel = (
            self.model if self.device.type == "cpu" else Evaluated(self.model, self.device)
        )
        if self.group.rank > 0:
            # Each process draws dropout and augmentation for itself.
            torch.manual_seed(text_seed(f"process {spec.seed} {self.group.rank}"))

    def _make_balancer(self) -> Callable[[Any], Any]:
        """Make the Balancer, and return the trunk as it is to be called."""
        method = self.identity["method"]
        options, joined = share_of_minibatches(
            method, self.identity["method_options"], self.group.size
        )
        represent: Callable[[Any], Any] = self.model.represent
        if not self.model.has_representation:
            if self.recipe.compile:
                raise ValueError(
                    f"{self.problem.name} differentiates its network, which a compiled one does "
                    "not allow; train without compile"
                )
        elif reruns_trunk(method, options):
            trunk = RememberInputs(self.model, "represent")
            options |= {"trunk": trunk, "shared": list(self.model.shared_parameters())}
            represent = trunk
        elif self.model.private_below:
            # Otherwise the exact kernel would be that of all parameters below the representations.
            options["shared"] = list(self.model.shared_parameters())
        options |= {"tasks": list(self.tasks), "record": self.recorder}
        self.balancer = (
            Balancer(method, **options)
            if joined is None
            else JoiningBalancer(method, joined, **options)
        )
        return represent

    def _checked_baseline(self, baseline: Sequence[float] | None) -> tuple[float, ...] | None:
        if not self.balancer.weighting.needs_scores:
            return None
        if baseline is None:
            raise ValueError(
                f"{self.balancer.method} learns after each epoch from how each task performs "
                "against its single-task network: give baseline=, the metrics of those networks on "
                "the validation split, or use ntkmtl compare or ntkmtl run, which train them first"
            )
        check_baseline(baseline, self.metrics)
        return tuple(float(value) for value in baseline)

    def make_optimizer(self) -> None:
        """Make the optimizer and its schedule, for the parameters that there are now."""
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]
        # Weights that are learned (uncertainty weighting) move with the network's learning rate.
        learned = list(self.balancer.parameters())
        if learned:
            groups.append({"params": learned, "weight_decay": 0.0})
        # Fused: one operation for all parameters, which saves a fifth of a small network's step.
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        self.optimizer = (
            torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
            if decay
            else torch.optim.Adam(groups, lr=rate, fused=True)
        )
        self.learning_rate = LearningRate(
            self.recipe,
            self.optimizer,
            self.adam_steps,
            self.metrics,
            self.problem.reference if self.chosen_tasks is None else None,
        )

    def losses(self, outputs: Sequence[Tensor], batch: Any) -> dict[str, Tensor | None]:
        """Return the losses of the tasks, in fp32; None for a task without labels."""
        return self.problem.losses(self.arithmetic.full(outputs), batch, self.chosen_tasks)

    def epoch_of(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the number of the step in it; both from 0."""
        if self.is_lbfgs(step):
            return self.recipe.epochs + step - self.adam_steps, 0
        return divmod(step, self.steps_per_epoch)

    def is_lbfgs(self, step: int) -> bool:
        """Whether a step, counted from 0, is one of L-BFGS."""
        return self.recipe.lbfgs_steps > 0 and step >= self.adam_steps

    def config(self, threads: int) -> RunConfig:
        """Return the content of ``config.json``."""
        known = {key: value for key, value in self.identity.items() if key != "schema"}
        created_with = self.problem.created_with
        try:
            canonical_json(created_with)
        except (TypeError, ValueError):
            # The problem was given something that JSON cannot hold.
            created_with = None
        return RunConfig(
            **{**known, "tasks": self.tasks, "metrics": self.metrics},
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            versions=versions() | problem_version(type(self.problem)),
            hardware=hardware(threads, self.device, self.group.size),
            baseline=self.baseline,
            created_with=created_with,
        )


def text_seed(text: str) -> int:
    """Return a seed made from a string."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def validation_split(problem: Problem) -> Split:
    """Return the split that a run is evaluated on after each epoch: ``val``, or ``train``."""
    return "val" if problem.size("val") > 0 else "train"


def share_of_minibatches(
    method: str, options: Mapping[str, Any], size: int
) -> tuple[dict[str, Any], int | None]:
    """Return a method's options with the mini-batches that one process takes.

    The kernel counts the mini-batches of every process. Methods that read the Gramian take the
    mean over them, however many there are.

    Returns:
        The options, and the number of mini-batches that all of them are to be joined to where each
        process has a part of one; else None.

    Raises:
        ValueError: They cannot be shared out.
    """
    own = dict(options)
    if size == 1 or method_spec(method).requires not in ("eigenvalues", "kernel"):
        return own, None
    n = own.get("minibatches", method_spec(method).defaults.get("minibatches", 1))
    if n % size == 0:
        return {**own, "minibatches": n // size}, None
    if size % n == 0:
        return {**own, "minibatches": 1}, n
    raise ValueError(
        f"the kernel of {n} mini-batches cannot be shared out to {size} processes: one number must "
        "be a multiple of the other; change minibatches or the number of processes"
    )


def join_minibatches(kernel: ExtendedNTK, n: int) -> ExtendedNTK:
    r"""Return the kernel of n mini-batches, each made of several neighbors.

    The gradient of a union is the mean of its parts' gradients by their shares s of the task's
    samples, so its kernel is :math:`\sum_{uv} s_{iu} s_{jv} K_{iu,jv}` over the parts u and v.

    Args:
        kernel: Of N mini-batches, a multiple of n.
        n: Number of mini-batches.

    Example:
        >>> kernel = ExtendedNTK(blocks=torch.tensor([[[4.0, 2.0], [2.0, 0.0]]]))
        >>> join_minibatches(kernel, 1).blocks
        tensor([[[2.]]])
    """
    shares = kernel.shares.view(kernel.tasks, n, -1)
    whole = shares.sum(dim=2, keepdim=True)
    means = torch.where(whole > 0, shares / whole, 1.0 / shares.shape[2])
    # Row a of task i's matrix averages over the parts of mini-batch a.
    matrix = torch.stack([torch.block_diag(*task[:, None]) for task in means])
    matrix = matrix.to(kernel.blocks)
    joint = whole[:, :, 0]
    if kernel.has_all_blocks:
        values = torch.einsum("iau,iujv,jbv->iajb", matrix, kernel.values, matrix)
        return ExtendedNTK(values, shares=joint)
    return ExtendedNTK(blocks=matrix @ kernel.blocks @ matrix.mT, shares=joint)


class JoiningBalancer(Balancer):
    """A Balancer whose mini-batches are each spread over several processes.

    Args:
        method: As for :class:`ntkmtl.Balancer`.
        joined: Number of mini-batches of all processes together.
        **options: As for :class:`ntkmtl.Balancer`.
    """

    def __init__(self, method: str, joined: int, **options: Any) -> None:
        super().__init__(method, **options)
        self.joined = joined

    def prepare_kernel(self, kernel: ExtendedNTK) -> ExtendedNTK:
        """Join the parts of each mini-batch."""
        return join_minibatches(kernel, self.joined)
