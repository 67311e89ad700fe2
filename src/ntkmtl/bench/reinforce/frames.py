"""Pictures of what a trained agent does."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ntkmtl.bench.reinforce.environment import MetaWorld
from ntkmtl.bench.reinforce.recipes import VARIANTS, ReinforceRecipe, variant_named
from ntkmtl.bench.reinforce.training import agent_for, products_of
from ntkmtl.bench.runs import AGENT, SINGLE_TASK, Run
from ntkmtl.bench.runs.folder import read_checkpoint
from ntkmtl.errors import imports_for
from ntkmtl.files import atomic_write

__all__ = ["Film", "film", "film_run", "save_strip"]

Pixels = npt.NDArray[np.uint8]

SIZE = 144
"""Width and height of a picture."""


@dataclass(frozen=True, eq=False)
class Film:
    """One deterministic episode of every task, in a few pictures.

    Attributes:
        tasks: Names of the k tasks.
        steps: Steps after which the F pictures were taken, 0 for the start.
        pictures: Shape (k, F, height, width, 3).
        solved: The step with which each task was solved first, None where it was not.
    """

    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    pictures: Pixels
    solved: tuple[int | None, ...]


def film(
    policy: Callable[[Tensor], Tensor], world: MetaWorld, *, count: int = 6, goal: int = 0
) -> Film:
    """Run one episode of every task and take pictures at even distances, its two ends included.

    Args:
        policy: From observations (k, 39) to actions (k, 4).
        world: Made with ``render``.
        count: Number of pictures, from 2 to the horizon and one.
        goal: Number of the goal.

    Raises:
        DrawingError: MuJoCo cannot draw here.
        ValueError: ``count`` is out of range.
    """
    if not 2 <= count <= world.horizon + 1:
        raise ValueError(f"count must be in 2..{world.horizon + 1}, found {count}")
    steps = tuple(round(i * world.horizon / (count - 1)) for i in range(count))
    seen = world.reset(goal)
    taken = [world.render()]
    solved: list[int | None] = [None] * len(world.tasks)
    for number in range(1, world.horizon + 1):
        found = world.step(policy(seen))
        seen = found.next_observations
        for task, success in enumerate(found.successes.tolist()):
            if success and solved[task] is None:
                solved[task] = number
        if number in steps:
            taken.append(world.render())
    return Film(world.tasks, steps, np.stack(taken, axis=1), tuple(solved))


def film_run(run: Run, *, count: int = 6) -> Film:
    """Film the trained agent of a run, at the first of its goals.

    Args:
        run: A complete run, with ``agent.pt`` in its folder.
        count: Number of pictures; see :func:`film`.

    Raises:
        DrawingError: MuJoCo cannot draw here.
        CheckpointError: ``agent.pt`` of the run is damaged.
        FileNotFoundError: There is none.
    """
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in run.config.problem_options.items()
    }
    known = {field.name for field in fields(ReinforceRecipe)} - {"compile"}
    recipe = ReinforceRecipe(**{name: value for name, value in options.items() if name in known})
    method = run.config.method
    variant = VARIANTS["stl"] if method == SINGLE_TASK else variant_named(method)
    tasks = run.config.tasks
    agent = agent_for(recipe, variant, len(tasks))
    # The policy alone: the noise of an agent that was trained on a GPU is not for a CPU.
    agent.actor.load_state_dict(read_checkpoint(run.path / AGENT)["actor"])
    world = MetaWorld(
        tasks, seed=run.config.seed, goals=recipe.goals, horizon=recipe.horizon, render=SIZE
    )
    try:
        with products_of(recipe):
            return film(lambda seen: agent.act(seen, deterministic=True), world, count=count)
    finally:
        world.close()


def save_strip(films: Sequence[Film], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw films below each other, a line per task, and write them as a PNG file.

    Args:
        films: With the same number of pictures each.
        path: The file.
        title: The title above the pictures.

    Raises:
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> black = np.zeros((1, 2, 8, 8, 3), dtype=np.uint8)
        >>> path = Path(tempfile.mkdtemp()) / "strip.png"
        >>> save_strip([Film(("reach",), (0, 500), black, (120,))], path)
        >>> path.exists()
        True
    """
    with imports_for("a strip of pictures"):
        from matplotlib.figure import Figure
    lines = [
        (task, solved, one.pictures[place], one.steps)
        for one in films
        for place, (task, solved) in enumerate(zip(one.tasks, one.solved, strict=True))
    ]
    count = max(len(pictures) for _, _, pictures, _ in lines)
    figure = Figure(figsize=(1.2 * count + 1.2, 1.32 * len(lines) + 0.3 * bool(title)))
    figure.set_layout_engine("constrained", h_pad=0.01, w_pad=0.01, hspace=0.0, wspace=0.0)
    panels = figure.subplots(len(lines), count, squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.set_frame_on(False)
    for line, (task, solved, pictures, steps) in zip(panels, lines, strict=True):
        for panel, picture, step in zip(line, pictures, steps, strict=False):
            panel.imshow(picture)
            panel.set_title(f"step {step}", fontsize=6, pad=2)
        outcome = "not solved" if solved is None else f"solved at step {solved}"
        line[0].set_ylabel(f"{_broken(task)}\n{outcome}", fontsize=7)
    if title:
        figure.suptitle(title, fontsize=9)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=math.ceil(SIZE / 1.2))


def _broken(name: str) -> str:
    r"""Break a long name at the hyphen nearest to its middle.

    Example:
        >>> _broken("button-press-topdown"), _broken("reach")
        ('button-press-\ntopdown', 'reach')
    """
    places = [i for i, letter in enumerate(name) if letter == "-"]
    if len(name) < 14 or not places:
        return name
    at = min(places, key=lambda i: abs(i - len(name) / 2))
    return f"{name[: at + 1]}\n{name[at + 1 :]}"
