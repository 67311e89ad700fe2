"""Hugging Face Accelerate: several processes, and trackers.

A run in one process on the CPU without a tracker never imports it.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args

from ntkmtl.bench.problems.base import Precision
from ntkmtl.errors import MissingExtraError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

__all__ = [
    "TRACKERS",
    "Tracker",
    "accelerator",
    "check_launch",
    "check_tracker",
]

TRACKERS = {
    "tensorboard": ("tensorboard", "pip install 'ntkmtl[tracking]'"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow"),
    "trackio": ("trackio", "pip install trackio"),
}
"""Names of trackers, the module that each needs, and what installs it."""

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: one evaluates while the others wait."""


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is unknown or not installed."""
    if name is None:
        return
    if name not in TRACKERS:
        raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}. Found {name!r}.")
    module, install = TRACKERS[name]
    if find_spec(module) is None:
        raise MissingExtraError(
            f"the tracker {name} needs {module}, which is not installed. "
            f"Install it with: {install}",
            name=module,
        )


def _is_true(key: str) -> bool:
    return os.environ.get(key, "false").lower() in ("true", "1")


def check_launch(precision: str | None = None) -> None:
    """Refuse settings of ``accelerate launch`` that the trainer does not follow.

    Args:
        precision: The recipe's; not looked at if None.

    Raises:
        ValueError: FSDP, DeepSpeed, Megatron-LM, a compiler, or another precision are asked for.
    """
    for key, what in (
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ):
        if _is_true(key):
            raise ValueError(
                f"accelerate was told to use {what}, which ntkmtl's trainer does not: it trains "
                "with DDP. Launch without it; in your own training loop, Balancer works with any "
                "wrapper whose hooks fire"
            )
    # accelerate would compile the network as a whole, and the run would not say so.
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ValueError(
            f"accelerate was told to compile with {backend}; launch with --dynamo_backend no, and "
            "give --compile to ntkmtl, which compiles trunk and heads"
        )
    if precision is None:
        return
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    mine = "no" if precision == "fp32" else precision
    known = get_args(Precision)
    if launched not in ("no", *known):
        raise ValueError(
            f"accelerate launch was told to use {launched}, which ntkmtl's trainer does not: "
            f"launch with --mixed_precision no, and give --precision {'|'.join(known)} to ntkmtl"
        )
    if launched not in ("no", mine):
        raise ValueError(
            f"accelerate launch was told to use {launched}, and the recipe says {precision}; "
            f"give --precision {launched} to ntkmtl as well, or leave it to ntkmtl alone"
        )


@contextlib.contextmanager
def accelerator(device: torch.device) -> Iterator[Any]:
    """Make an ``Accelerator``, and restore accelerate's global state afterwards.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        raise missing_extra("training in several processes", "bench", error) from error
    # Its state is global to the process: a second device would be refused.
    kept = [(kind, dict(kind._shared_state)) for kind in (AcceleratorState, GradientState)]
    kept.append((PartialState, dict(PartialState._shared_state)))
    for kind, _ in kept:
        kind._shared_state.clear()
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            # The trainer does precision and accumulation itself: the Balancer takes part in both.
            mixed_precision="no",
            gradient_accumulation_steps=1,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    finally:
        for kind, state in kept:
            kind._shared_state.clear()
            kind._shared_state.update(state)


class Tracker:
    """Logs numbers of a run by one of accelerate's trackers.

    Nothing leaves the machine unless the user's own settings say so: W&B runs offline where
    ``WANDB_MODE`` is not set, MLflow writes into the run's folder where ``MLFLOW_TRACKING_URI`` is
    not set, TensorBoard writes there, and trackio into its own folder.

    Args:
        name: A key of :data:`TRACKERS`.
        folder: The run's folder.
        config: What determines the run, flat.
        title: Name of the run.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], title: str) -> None:
        check_tracker(name)
        try:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        except ImportError as error:
            raise missing_extra("a tracker", "bench", error) from error
        folder.mkdir(parents=True, exist_ok=True)
        project = "ntkmtl"
        options: dict[str, Any] = {}
        if name == "tensorboard":
            project = "tensorboard"
            options = {"logging_dir": str(folder)}
        elif name == "wandb":
            options = {"dir": str(folder), "name": title}
            if "WANDB_MODE" not in os.environ:
                options["mode"] = "offline"
        elif name == "mlflow":
            if "MLFLOW_TRACKING_URI" not in os.environ:
                import mlflow

                mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
                options = {"logging_dir": (folder / "mlartifacts").resolve().as_uri()}
            options["run_name"] = title
        else:
            options = {"name": title}
        self._tracker: Any = LOGGER_TYPE_TO_CLASS[name](project, **options)
        if hasattr(self._tracker, "start"):
            self._tracker.start()
        self._tracker.store_init_configuration(
            {
                key: value if isinstance(value, int | float | str) else str(value)
                for key, value in config.items()
            }
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a step."""
        self._tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Flush and close."""
        self._tracker.finish()
