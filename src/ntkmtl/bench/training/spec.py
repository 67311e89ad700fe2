"""What one run is asked to be, carried whole from the command to the place that uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ntkmtl.bench.compute.device import Device
    from ntkmtl.bench.problems.base import Recipe

__all__ = ["RunSpec"]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What one run of a problem is asked to be.

    A new option is a field here, a flag of the command, and the place that uses it: everything in
    between passes the whole.

    Attributes:
        method: Name of the method, given to :class:`ntkmtl.Balancer`.
        seed: Seed of the initial weights, of the order of the data, and of all random draws.
        recipe: How long and how the network is trained; the problem's own recipe if None.
        method_options: Options given to :class:`ntkmtl.Balancer`.
        single_task: The task of a single-task baseline, whose method is ``"stl"``.
        baseline: For methods that learn from scores after each epoch
            (:attr:`ntkmtl.weighting.Weighting.needs_scores`): metrics of the single-task networks
            of the same seed on the validation split, one number per metric, as
            :func:`ntkmtl.bench.training.scores.read_baseline` reads them. A resumed run keeps the
            baseline that it began with. Other methods ignore it.
        threads: Threads that torch computes with; ``OMP_NUM_THREADS`` or all cores if None. A
            resumed run keeps the number that it began with.
        checkpoint_seconds: Least time between two checkpoints. Where writing one takes long, they
            are spaced so that they take at most a twentieth of the time.
        record: ``every``, ``source`` and ``minibatches`` of a record of the kernel over training,
            written to ``record.json``; see
            :func:`ntkmtl.bench.training.recording.record_settings`. None for no record. It
            changes none of the run's numbers.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU if there is one.
        tracker: What logs losses, task weights, eigenvalues and metrics during training: a key of
            :data:`ntkmtl.bench.compute.accelerate_.TRACKERS`, None for nothing.
        keep_model: Whether the run keeps its trained network, ``model.safetensors``. A run that is
            complete stays as it is either way.
    """

    method: str
    seed: int
    recipe: Recipe | None = None
    method_options: Mapping[str, Any] | None = field(default=None)
    single_task: str | None = None
    baseline: Sequence[float] | None = None
    threads: int | None = None
    checkpoint_seconds: float = 5.0
    record: Mapping[str, Any] | None = None
    device: Device = "cpu"
    tracker: str | None = None
    keep_model: bool = True

    @property
    def chosen_tasks(self) -> tuple[str, ...] | None:
        """The tasks that the problem is asked for; None for all, which it may treat faster."""
        return None if self.single_task is None else (self.single_task,)
