"""Meta-World tasks that run in step with each other."""

from __future__ import annotations

import difflib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ntkmtl.errors import imports_for

__all__ = [
    "MT10",
    "DrawingError",
    "EnvironmentStep",
    "Goals",
    "MetaWorld",
    "RewardScale",
    "Simulator",
    "expert",
]

Goals = Literal["fixed", "random"]

MT10: tuple[str, ...] = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)
"""The ten tasks of MT10, in the benchmark's order."""

OBSERVATION, ACTION = 39, 4
"""Numbers in an observation, and in an action."""

LONGEST_HORIZON = 500
GOALS = 50
"""Goals that Meta-World draws for a task and a seed."""


class DrawingError(RuntimeError):
    """MuJoCo cannot draw here; the message says what is missing."""


@dataclass(frozen=True)
class EnvironmentStep:
    """What one step of all tasks led to.

    Attributes:
        next_observations: What the actions led to, float32 of shape (k, 39): the last observation
            of an episode where it ended, never the first of the next.
        rewards: float32 of shape (k,), divided by their running deviation where that is asked for.
        raw_rewards: The simulator's own, float32 of shape (k,).
        successes: Whether each task was solved at any step of its episode so far, shape (k,).
        ended: Whether the episode ended with this step, by the clock, for all tasks at once.
    """

    next_observations: Tensor
    rewards: Tensor
    raw_rewards: Tensor
    successes: Tensor
    ended: bool


class Simulator(Protocol):
    """k tasks that run in step with each other: what training and evaluation need of them."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the k tasks."""

    @property
    def observations(self) -> Tensor:
        """What the next actions answer to, float32 of shape (k, observation)."""

    def reset(self, goal: int | None = None) -> Tensor:
        """Begin an episode of every task; return the first observations."""

    def step(self, actions: Tensor) -> EnvironmentStep:
        """Run every task by one step."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that later episodes depend on; between two episodes only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""

    def close(self) -> None:
        """Close the simulators."""


class RewardScale:
    r"""Divides rewards by their running deviation, task by task.

    With :math:`\mu_0 = 0` and :math:`s_0 = 1`, each reward r moves :math:`\mu` to
    :math:`(1-a)\mu + a r`, then s to :math:`(1-a)s + a (r-\mu)^2`, and becomes
    :math:`r / (\sqrt{s} + 10^{-8})`: what the 2021 code base behind the published runs does.

    Args:
        tasks: Number of tasks k.
        rate: The rate a.

    Example:
        >>> import torch
        >>> RewardScale(2, rate=1.0)(torch.tensor([0.0, 3.0]))  # mean = reward: no deviation
        tensor([0.0000e+00, 3.0000e+08])
    """

    def __init__(self, tasks: int, rate: float = 1e-3) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], found {rate}")
        self.rate = rate
        self.mean = torch.zeros(tasks, dtype=torch.float64)
        self.variance = torch.ones(tasks, dtype=torch.float64)

    def __call__(self, rewards: Tensor) -> Tensor:
        """Take rewards of shape (k,) into account and return them divided."""
        values = rewards.to(torch.float64)
        self.mean = torch.lerp(self.mean, values, self.rate)
        self.variance = torch.lerp(self.variance, (values - self.mean).square(), self.rate)
        return (values / (self.variance.sqrt() + 1e-8)).to(rewards.dtype)


class MetaWorld:
    """Meta-World's V3 tasks, one simulator each, all reset and stepped together.

    The simulators are driven directly: no one-hot is added to observations, the true last
    observation of an episode is what :meth:`step` returns, every seed counts (0 too), the reward
    is version 2, and the horizon is kept. The same seed and actions give the same numbers, bit for
    bit, whatever ran before.

    Args:
        tasks: Names as in :data:`MT10`, with or without ``-v3``; any of Meta-World's fifty.
        seed: Seed of the goals.
        goals: ``"fixed"``: goal 0 of each task in every episode; ``"random"``: one of
            ``goal_count`` in each.
        goal_count: Goals to draw from, at most 50.
        horizon: Steps of an episode, at most 500.
        scale_rewards: Divide rewards by their running deviation; see :class:`RewardScale`.
        order_seed: Seed of the order in which goals are drawn; ``seed`` if None.
        render: Size in pixels of the pictures of :meth:`render`; 0 for a world without pictures.

    Raises:
        MissingExtraError: Meta-World is not installed.
        DrawingError: Pictures are asked for, and MuJoCo has nothing to draw with.
        ValueError: A task is unknown or named twice, or a number is out of range.

    Example:
        >>> import torch
        >>> world = MetaWorld(["reach", "drawer-close"], horizon=2)
        >>> world.reset().shape
        torch.Size([2, 39])
        >>> step = world.step(torch.zeros(2, 4))
        >>> step.next_observations.shape, step.ended
        (torch.Size([2, 39]), False)
        >>> world.step(torch.zeros(2, 4)).ended
        True
    """

    def __init__(
        self,
        tasks: Sequence[str] = MT10,
        *,
        seed: int = 0,
        goals: Goals = "fixed",
        goal_count: int = GOALS,
        horizon: int = 150,
        scale_rewards: bool = False,
        order_seed: int | None = None,
        render: int = 0,
    ) -> None:
        if goals not in ("fixed", "random"):
            raise ValueError(f"goals must be 'fixed' or 'random', found {goals!r}")
        if not 1 <= horizon <= LONGEST_HORIZON:
            raise ValueError(f"horizon must be in 1..{LONGEST_HORIZON}, found {horizon}")
        if not 1 <= goal_count <= GOALS:
            raise ValueError(f"goal_count must be in 1..{GOALS}, found {goal_count}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in 0..2**32 - 1, found {seed}")
        self._tasks = tuple(_plain(name) for name in tasks)
        if not self._tasks or len(set(self._tasks)) < len(self._tasks):
            raise ValueError(f"tasks must be one or more different names, found {list(tasks)}")
        self.goals = goals
        self.goal_count = goal_count
        self.horizon = horizon
        self._drawn = render > 0
        if self._drawn:
            _choose_drawing()
        self._made = [_simulator(name, render) for name in self._tasks]
        self._goals = [_goals(name, seed) for name in self._tasks]
        self._scale = RewardScale(len(self._tasks)) if scale_rewards else None
        self._order = torch.Generator().manual_seed(seed if order_seed is None else order_seed)
        self._clock: int | None = None
        self._observations = torch.zeros(len(self._tasks), OBSERVATION)
        self._successes = torch.zeros(len(self._tasks), dtype=torch.bool)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the k tasks, without a version."""
        return self._tasks

    @property
    def observations(self) -> Tensor:
        """What the next actions answer to, float32 of shape (k, 39)."""
        return self._observations

    def reset(self, goal: int | None = None) -> Tensor:
        """Begin an episode of every task.

        Args:
            goal: Number of the goal of every task; as ``goals`` says if None.

        Returns:
            The first observations, float32 of shape (k, 39).

        Raises:
            ValueError: There is no such goal.
        """
        if goal is not None and not 0 <= goal < GOALS:
            raise ValueError(f"goal must be in 0..{GOALS - 1}, found {goal}")
        k = len(self._tasks)
        if goal is not None:
            chosen = [goal] * k
        elif self.goals == "fixed":
            chosen = [0] * k
        else:
            chosen = torch.randint(self.goal_count, (k,), generator=self._order).tolist()
        rows = []
        for simulator, known, number in zip(self._made, self._goals, chosen, strict=True):
            simulator.set_task(known[number])
            rows.append(torch.from_numpy(simulator.reset()[0]))
        self._observations = torch.stack(rows).float()
        self._successes = torch.zeros(k, dtype=torch.bool)
        self._clock = 0
        return self._observations

    def step(self, actions: Tensor) -> EnvironmentStep:
        """Run every task by one step. After the last of an episode, call :meth:`reset`.

        Args:
            actions: Shape (k, 4), clipped to [-1, 1] by the simulators.

        Returns:
            Observations, rewards and successes of the k tasks, and whether the episode has ended.

        Raises:
            ValueError: The actions have another shape or are not finite.
            RuntimeError: No episode has begun, or it has ended.
        """
        if self._clock is None:
            raise RuntimeError("no episode is running: call reset()")
        if actions.shape != (len(self._tasks), ACTION):
            raise ValueError(
                f"actions must have shape ({len(self._tasks)}, {ACTION}), found "
                f"{tuple(actions.shape)}"
            )
        if not bool(actions.isfinite().all()):
            raise ValueError(f"actions must be finite, found {actions.tolist()}")
        rows, rewards, solved = [], [], []
        for simulator, action in zip(self._made, actions.float().cpu().numpy(), strict=True):
            observation, reward, _, _, info = simulator.step(action)
            rows.append(torch.from_numpy(observation))
            rewards.append(float(reward))
            solved.append(bool(info["success"]))
        self._observations = torch.stack(rows).float()
        self._successes = self._successes | torch.tensor(solved)
        self._clock += 1
        ended = self._clock == self.horizon
        if ended:
            self._clock = None
        raw = torch.tensor(rewards)
        return EnvironmentStep(
            self._observations,
            raw if self._scale is None else self._scale(raw),
            raw,
            self._successes,
            ended,
        )

    def render(self) -> list[Any]:
        """Return one picture per task, uint8 arrays of shape (height, width, 3).

        Raises:
            RuntimeError: The world was made without ``render``.
            DrawingError: MuJoCo cannot draw here.
        """
        if not self._drawn:
            raise RuntimeError("this world has no pictures: make it as MetaWorld(..., render=240)")
        try:
            pictures = [_picture(simulator) for simulator in self._made]
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            # What OpenGL's loaders raise where a library or a device is missing.
            raise DrawingError(
                f"MuJoCo cannot draw with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {error}. "
                f"{_DRAWING_NEEDS}"
            ) from error
        # The camera hangs upside down.
        return [picture[::-1] for picture in pictures]

    def state_dict(self) -> dict[str, Any]:
        """Return all that later episodes depend on, as tensors.

        Raises:
            RuntimeError: An episode is running: what a simulator is in the middle of is not kept.
        """
        if self._clock is not None:
            raise RuntimeError("an episode is running; a world is saved between two episodes")
        scale = self._scale
        return {
            "order": self._order.get_state(),
            "mean": None if scale is None else scale.mean.clone(),
            "variance": None if scale is None else scale.variance.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; call :meth:`reset` before the next step.

        Args:
            state: That of a world made with the same arguments.

        Raises:
            ValueError: The state is of a world with or without reward scaling, unlike this one.
        """
        if (state["mean"] is None) != (self._scale is None):
            raise ValueError("the state and this world differ in scale_rewards")
        self._order.set_state(state["order"])
        if self._scale is not None:
            self._scale.mean = state["mean"].clone()
            self._scale.variance = state["variance"].clone()
        self._clock = None

    def close(self) -> None:
        """Close the simulators."""
        for simulator in self._made:
            simulator.close()


def expert(task: str) -> Callable[[Tensor], Tensor]:
    """Return Meta-World's scripted policy of a task: from an observation (39,) to an action (4,).

    Args:
        task: Name of the task, such as ``"reach"``.

    Raises:
        MissingExtraError: Meta-World is not installed.
        ValueError: The task is unknown.
    """
    policies = _metaworld("metaworld.policies").ENV_POLICY_MAP
    policy = policies[f"{_known(task)}-v3"]()

    def act(observation: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # It warns of its own constants; actions are clipped.
            warnings.simplefilter("ignore", UserWarning)
            action = policy.get_action(observation.to(torch.float64).numpy())
        return torch.as_tensor(action, dtype=torch.float32)

    return act


_DRAWERS = {"egl": "EGL", "osmesa": "OSMesa"}
_DRAWING_NEEDS = (
    "Off screen it needs libEGL (Debian: apt install libegl1 libgl1-mesa-dri) with MUJOCO_GL=egl, "
    "or libOSMesa (apt install libosmesa6) with MUJOCO_GL=osmesa."
)


def _choose_drawing() -> None:
    """Choose a library for MuJoCo to draw off screen with, unless ``MUJOCO_GL`` names one."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if not sys.platform.startswith("linux") or (not asked and os.environ.get("DISPLAY")):
        return
    if not asked:
        there = [name for name, library in _DRAWERS.items() if find_library(library)]
        if not there:
            raise DrawingError(
                f"pictures cannot be drawn: neither libEGL nor libOSMesa was found. "
                f"{_DRAWING_NEEDS}"
            )
        os.environ["MUJOCO_GL"] = there[0]
    elif asked in _DRAWERS and not find_library(_DRAWERS[asked]):
        raise DrawingError(
            f"pictures cannot be drawn: MUJOCO_GL={asked}, and lib{_DRAWERS[asked]} was not found. "
            f"{_DRAWING_NEEDS}"
        )


def _metaworld(module: str = "metaworld") -> Any:
    with imports_for("a Meta-World environment", "rl"):
        return import_module(module)


def _plain(name: str) -> str:
    return name.removesuffix("-v3")


def _known(name: str) -> str:
    names = [_plain(n) for n in _metaworld("metaworld.env_dict").ALL_V3_ENVIRONMENTS]
    if _plain(name) not in names:
        close = difflib.get_close_matches(_plain(name), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown task {name!r}{hint} Tasks: {', '.join(names)}")
    return _plain(name)


def _picture(simulator: Any) -> Any:
    """Draw one simulator's scene in its own drawing context, not in that of the last drawn one."""
    viewer = simulator.mujoco_renderer.viewer
    if viewer is not None:
        viewer.make_context_current()
    return simulator.render()


def _simulator(name: str, render: int) -> Any:
    kinds = _metaworld("metaworld.env_dict").ALL_V3_ENVIRONMENTS
    shown = {"render_mode": "rgb_array", "camera_name": "corner2", "width": render}
    shown = {**shown, "height": render} if render else {}
    return kinds[f"{_known(name)}-v3"](reward_function_version="v2", **shown)


@functools.lru_cache(maxsize=64)
def _goals(name: str, seed: int) -> list[Any]:
    """Return the 50 goals of a task; the global random state is not changed."""
    return list(_metaworld().MT1(f"{name}-v3", seed=seed).train_tasks)
