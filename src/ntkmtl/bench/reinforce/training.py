"""Training and evaluating one agent."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntkmtl.bench.compute.device import choose_device
from ntkmtl.bench.compute.environment import hardware, reproducible, versions
from ntkmtl.bench.jobs.engine import stop_requests
from ntkmtl.bench.reinforce.environment import MetaWorld, Simulator
from ntkmtl.bench.reinforce.recipes import ReinforceRecipe, Variant
from ntkmtl.bench.reinforce.replay import Replay
from ntkmtl.bench.reinforce.sac import MultiTaskSAC
from ntkmtl.bench.runs import (
    AGENT,
    MAX_STEP_ROWS,
    SINGLE_TASK,
    Epoch,
    Run,
    RunConfig,
    RunInterrupted,
    RunMetric,
    RunResult,
    Steps,
    load_run,
)
from ntkmtl.bench.runs.folder import RunFolder, write_checkpoint
from ntkmtl.bench.training.spec import method_source
from ntkmtl.weighting import spec

__all__ = ["PROBLEM", "Progress", "agent_for", "evaluate", "train"]

PROBLEM = "mt10"
"""Name of the problem in run directories."""

Progress = Callable[[int, int, "float | None"], None]
"""Called with vector steps done, in all, and the last success rate in percent."""

MakeSimulator = Callable[[ReinforceRecipe, Sequence[str], int], Simulator]


def make_world(recipe: ReinforceRecipe, tasks: Sequence[str], seed: int) -> Simulator:
    """Make the simulators of a recipe: goals and their order depend on the seed alone."""
    return MetaWorld(
        tasks,
        seed=seed,
        goals=recipe.goals,
        horizon=recipe.horizon,
        scale_rewards=recipe.scale_rewards,
    )


def settings_of(recipe: ReinforceRecipe, variant: Variant) -> dict[str, Any]:
    """Return what a variant means under a recipe, as JSON values: networks, balancing, settings."""
    shared = recipe.temperature if recipe.temperature != "published" else variant.temperature
    # Methods that combine gradients entry by entry have no weights to keep.
    every = 1 if spec(variant.method).requires in ("losses", "jacobian") else recipe.every
    return {
        "method": variant.method,
        "options": {**variant.options, **recipe.method_options.get(variant.name, {})},
        "heads": variant.heads,
        "encoding": variant.encoding or recipe.encoding,
        "temperature": shared,
        "every": every,
    }


def config_of(
    recipe: ReinforceRecipe, variant: Variant, seed: int, task: str | None = None
) -> RunConfig:
    """Return what identifies a run: its config without size, versions and hardware."""
    tasks = _tasks(recipe, task)
    return RunConfig(
        problem=PROBLEM,
        problem_class="ntkmtl.bench.reinforce:MetaWorld",
        problem_options=json.loads(json.dumps(asdict(recipe))),
        method=SINGLE_TASK if variant.single_task else variant.name,
        method_options=settings_of(recipe, variant),
        seed=seed,
        recipe={
            "epochs": recipe.vector_steps // recipe.evaluate_every,
            "batch_size": _batch_size(recipe, task),
            "learning_rate": recipe.learning_rate,
            "minibatches": 1,
            "reduced": recipe.reduced,
            "description": recipe.description,
        },
        tasks=tasks,
        metrics=tuple(RunMetric(name, name, "%", True) for name in tasks),
        sizes={"train": recipe.vector_steps, "val": recipe.evaluation_episodes, "test": 0},
        parameters=0,
        versions={},
        hardware={},
        method_source=method_source(variant.method),
    )


def _tasks(recipe: ReinforceRecipe, task: str | None) -> tuple[str, ...]:
    return recipe.tasks if task is None else (task,)


def _batch_size(recipe: ReinforceRecipe, task: str | None) -> int:
    """Return the transitions of an update; a single-task agent has what falls to one task."""
    return recipe.batch_size if task is None else recipe.batch_size // len(recipe.tasks)


def agent_for(
    recipe: ReinforceRecipe,
    variant: Variant,
    tasks: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **changes: Any,
) -> MultiTaskSAC:
    """Make the agent of a variant under a recipe.

    Args:
        recipe: The recipe.
        variant: The variant.
        tasks: Number of tasks k; 1 for a single-task agent.
        seed: Seed of the initial weights and of the noise.
        device: Its device.
        **changes: Arguments of :class:`MultiTaskSAC` to replace.
    """
    settings = settings_of(recipe, variant)
    chosen: dict[str, Any] = {
        "hidden": recipe.hidden,
        "heads": settings["heads"],
        # A single task needs no encoding.
        "encoding": settings["encoding"] if tasks > 1 else "none",
        "method": settings["method"],
        "method_options": settings["options"],
        "every": settings["every"],
        "learning_rate": recipe.learning_rate,
        "gamma": recipe.gamma,
        "tau": recipe.tau,
        "temperature": settings["temperature"],
        "initial_temperature": recipe.initial_temperature,
        "seed": seed,
        "device": device,
        "compile": recipe.compile,
    }
    return MultiTaskSAC(tasks, **{**chosen, **changes})


def evaluate(
    policy: Callable[[Tensor], Tensor], world: Simulator, episodes: int
) -> tuple[float, ...]:
    """Return each task's success rate over goals 0 to ``episodes - 1``, in percent.

    Args:
        policy: From observations (k, observation) to actions (k, action).
        world: Simulators for evaluation, not those that the agent is trained in. Goals are
            those of the seed: random ones are among the 50 that the agent trains with.
        episodes: Episodes per task.

    Returns:
        k numbers. An episode is a success if the task was solved at any step of it.
    """
    solved = torch.zeros(len(world.tasks))
    for goal in range(episodes):
        observations = world.reset(goal)
        while True:
            step = world.step(policy(observations))
            observations = step.next_observations
            if step.ended:
                solved += step.successes
                break
    return tuple((100.0 * solved.double() / episodes).tolist())


def train(
    recipe: ReinforceRecipe,
    variant: Variant,
    seed: int,
    folder: str | os.PathLike[str],
    *,
    task: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    checkpoint_seconds: float = 300.0,
    overwrite: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    make_simulator: MakeSimulator = make_world,
) -> Run:
    """Train one variant with one seed; resume from a checkpoint if there is one.

    The folder gets the files of ``docs/run-format.md``: an epoch is the time between two
    evaluations, the metrics are success rates in percent, training losses are the critics', the
    recorded weights and eigenvalues those of the critics' losses. A complete run is returned as
    it is. On a CPU, a run that was stopped ends bit-equal to one that was not.

    Args:
        recipe: How long and how.
        variant: Which variant.
        seed: Seed of goals, initial weights, noise and draws.
        folder: The run's folder.
        task: The task of a single-task agent, where the variant is one of those.
        device: Device of networks and replay: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: Threads that torch computes with.
        checkpoint_seconds: Least time between checkpoints, which are made between episodes.
        overwrite: Replace a run of other settings.
        progress: Called with the progress, about once a second.
        should_stop: Asked after each vector step; True stops at the end of the episode. Ctrl-C and
            SIGTERM do so if None.
        make_simulator: Makes the tasks, twice: for training and for evaluation.

    Raises:
        ValueError: Recipe, variant and task do not go together.
        DeviceError: The device is missing.
        RunConflictError: The folder holds another run.
        RunBusyError: Another process is training in it.
        RunFolderLostError: The folder was removed while the run was being trained.
        RunInterrupted: It was stopped; call again to resume.
        NonFiniteError: A loss or gradient was not finite.
    """
    _require_suitable(recipe, variant, task)
    chosen = choose_device(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(reproducible(threads, chosen))
        stack.enter_context(products_of(recipe))
        training = AgentTraining(recipe, variant, seed, task, chosen.type, threads, make_simulator)
        stack.callback(training.close)
        place = RunFolder(folder, training.config.identity(), training.config.versions)
        stack.enter_context(place.lock())
        if (done := _begin(place, training, overwrite)) is not None:
            return done
        should_stop = should_stop or stack.enter_context(stop_requests())
        training.run(place, checkpoint_seconds, progress, should_stop)
    return load_run(folder)


def _begin(place: RunFolder, training: AgentTraining, overwrite: bool) -> Run | None:
    """Return the run of a locked folder if it is complete; else resume or start it."""
    if overwrite and place.conflicts():
        place.clear()
    if (done := place.complete()) is not None:
        return done
    state = place.resume()
    if state is not None:
        training.load_state_dict(state)
    place.start(training.config)
    return None


def _require_suitable(recipe: ReinforceRecipe, variant: Variant, task: str | None) -> None:
    """Refuse a recipe, a variant and a task that do not fit each other."""
    recipe.check()
    if variant.single_task != (task is not None):
        raise ValueError(
            f"{variant.name} is "
            f"{'one agent per task: give task' if variant.single_task else 'one agent'}, "
            f"found task={task!r}"
        )
    if task is not None and task not in recipe.tasks:
        raise ValueError(f"task must be one of {', '.join(recipe.tasks)}, found {task!r}")


@contextlib.contextmanager
def products_of(recipe: ReinforceRecipe) -> Iterator[None]:
    """Multiply matrices of float32 as a recipe says, and restore torch's setting."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if recipe.bfloat16_products else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class AgentTraining:
    """The state of one run, and the loop over its steps."""

    def __init__(
        self,
        recipe: ReinforceRecipe,
        variant: Variant,
        seed: int,
        task: str | None,
        device: str,
        threads: int,
        make_simulator: MakeSimulator,
    ) -> None:
        self.recipe = recipe
        self.tasks = _tasks(recipe, task)
        torch.manual_seed(seed)
        k = len(self.tasks)
        self.agent = agent_for(recipe, variant, k, seed=seed, device=device)
        self.world = make_simulator(recipe, self.tasks, seed)
        self.judge = make_simulator(recipe, self.tasks, seed)
        observation = self.world.observations.shape[1]
        self.action = int(self.agent.actor.heads[0].out_features // 2)  # type: ignore[operator]
        self.batch_size = _batch_size(recipe, task)
        self.replay = Replay(
            k,
            recipe.capacity // len(recipe.tasks),
            observation,
            self.action,
            seed=seed,
            device=device,
        )
        self.explore = torch.Generator().manual_seed(seed)
        self.config = replace(
            config_of(recipe, variant, seed, task),
            parameters=self.agent.parameter_count(),
            versions=_versions(),
            hardware={**hardware(threads), "device": device},
        )
        self.step = 0
        self.history: list[Epoch] = []
        self.loss_sums = torch.zeros(k, dtype=torch.float64)
        self.loss_counts = torch.zeros(k, dtype=torch.float64)
        self.epoch_seconds = 0.0
        self.wall_seconds = 0.0
        self.stride = math.ceil(recipe.vector_steps / MAX_STEP_ROWS)
        self.rows: list[tuple[int, Tensor, Tensor | None]] = []

    def close(self) -> None:
        self.world.close()
        self.judge.close()

    # ------------------------------------------------------------------ the loop

    def run(
        self,
        folder: RunFolder,
        checkpoint_seconds: float,
        progress: Progress | None,
        should_stop: Callable[[], bool],
    ) -> None:
        recipe = self.recipe
        started = time.monotonic() - self.wall_seconds
        saved = told = time.monotonic()
        stopping = False
        while self.step < recipe.vector_steps:
            stopping = stopping or should_stop()
            before = time.perf_counter()
            ended = self._vector_step()
            self.epoch_seconds += time.perf_counter() - before
            now = time.monotonic()
            if progress is not None and (now - told >= 1.0 or self.step == recipe.vector_steps):
                success = statistics.fmean(self.history[-1].val) if self.history else None
                progress(self.step, recipe.vector_steps, success)
                told = now
            if not ended:
                continue
            folder.require_present()
            if self.step % recipe.evaluate_every == 0:
                self._evaluate()
            if stopping or now - saved >= checkpoint_seconds:
                self.wall_seconds = time.monotonic() - started
                folder.save(self.state_dict())
                saved = time.monotonic()
            if stopping:
                raise RunInterrupted(f"stopped after step {self.step} of {recipe.vector_steps}")
        self._finish(folder, started)

    def _vector_step(self) -> bool:
        """Act in every task, store the transitions, update; return whether the episode ended."""
        recipe = self.recipe
        if self.step % recipe.horizon == 0:
            self.world.reset()
        seen = self.world.observations
        if self.step < recipe.random_steps:
            shape = (len(self.tasks), self.action)
            actions = 2.0 * torch.rand(shape, generator=self.explore) - 1.0
        else:
            actions = self.agent.act(seen)
        found = self.world.step(actions)
        self.replay.add(seen, actions, found.rewards, found.next_observations)
        self.step += 1
        updates = 0
        if self.step == recipe.random_steps and recipe.catch_up:
            updates = recipe.random_steps
        elif self.step > recipe.random_steps:
            updates = 1
        for _ in range(updates):
            self._update()
        return found.ended

    def _update(self) -> None:
        number = self.agent.updates
        if self.recipe.sampling == "stratified":
            batch = self.replay.stratified(self.batch_size // len(self.tasks))
        else:
            batch = self.replay.uniform(self.batch_size)
        update = self.agent.update(batch)
        there = ~update.critic_losses.isnan()
        self.loss_sums += update.critic_losses.nan_to_num().double()
        self.loss_counts += there
        # Kernels are made in some updates only; rows are taken from those.
        every = self.agent.critic_balancer.every
        if number % (every * math.ceil(self.stride / every)) == 0:
            self.rows.append((number, update.critic_weights, update.critic_eigenvalues))

    def _evaluate(self) -> None:
        before = time.perf_counter()
        success = evaluate(
            lambda seen: self.agent.act(seen, deterministic=True),
            self.judge,
            self.recipe.evaluation_episodes,
        )
        means = (self.loss_sums / self.loss_counts).tolist()
        self.history.append(
            Epoch(
                epoch=len(self.history),
                train_losses=tuple(None if math.isnan(m) else m for m in means),
                val=success,
                learning_rate=self.recipe.learning_rate,
                train_seconds=self.epoch_seconds,
                eval_seconds=time.perf_counter() - before,
            )
        )
        self.agent.end_epoch()
        self.loss_sums.zero_()
        self.loss_counts.zero_()
        self.epoch_seconds = 0.0

    def _finish(self, folder: RunFolder, started: float) -> None:
        seconds = [epoch.train_seconds for epoch in self.history]
        final = self.history[-1].val
        result = RunResult(
            test=final,
            val=final,
            seconds_per_epoch=statistics.median(seconds),
            train_seconds=sum(seconds),
            wall_seconds=time.monotonic() - started,
            steps=self.agent.updates,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        folder.finish(
            self.history,
            _steps(self.rows, len(self.tasks)),
            result,
            lambda: write_checkpoint(folder.file(AGENT), self.agent.state_dict()),
        )

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "agent": self.agent.state_dict(),
            "replay": self.replay.state_dict(),
            "world": self.world.state_dict(),
            "explore": self.explore.get_state(),
            "random": torch.get_rng_state(),
            "history": [asdict(epoch) for epoch in self.history],
            "loss_sums": self.loss_sums,
            "loss_counts": self.loss_counts,
            "epoch_seconds": self.epoch_seconds,
            "wall_seconds": self.wall_seconds,
            "rows": [list(row) for row in self.rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        for name in ("agent", "replay", "world"):
            getattr(self, name).load_state_dict(state[name])
        self.explore.set_state(state["explore"])
        torch.set_rng_state(state["random"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.loss_sums = state["loss_sums"].clone()
        self.loss_counts = state["loss_counts"].clone()
        self.epoch_seconds = float(state["epoch_seconds"])
        self.wall_seconds = float(state["wall_seconds"])
        self.rows = [(int(n), w, e) for n, w, e in state["rows"]]


def _steps(rows: Sequence[tuple[int, Tensor, Tensor | None]], tasks: int) -> Steps:
    eigenvalues = None
    if any(row[2] is not None for row in rows):
        none = torch.full((tasks,), torch.nan)
        found = [none if row[2] is None else row[2].float().cpu() for row in rows]
        eigenvalues = torch.stack(found).numpy()
    weights = [row[1].float() for row in rows]
    return Steps(
        np.array([row[0] for row in rows], dtype=np.int64),
        torch.stack(weights).numpy() if weights else np.zeros((0, tasks), dtype=np.float32),
        eigenvalues,
    )


def _versions() -> dict[str, str]:
    return versions() | {name: _version(name) for name in ("metaworld", "mujoco")}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
