"""The replay buffer: transitions, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Replay", "ReplayBatch", "TaskView"]

_FIELDS = ("observations", "actions", "rewards", "next_observations")


@dataclass(frozen=True)
class ReplayBatch:
    """Transitions of k tasks, one task's behind the other's.

    There is no flag for the end of an episode: these tasks end by the clock alone, and a target
    looks past that.

    Attributes:
        observations: Shape (B, observation).
        actions: Shape (B, action).
        rewards: Shape (B,).
        next_observations: Shape (B, observation).
        sizes: Number of rows of each task; 0 where a uniform draw missed one.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    sizes: tuple[int, ...]

    @property
    def slices(self) -> list[slice]:
        """Where each task's rows are."""
        places, start = [], 0
        for size in self.sizes:
            places.append(slice(start, start + size))
            start += size
        return places

    def of_each(self, loss: Callable[[int, slice], Tensor]) -> list[Tensor | None]:
        """Return ``loss`` of each task's number and its rows' place, None where it has no rows."""
        return [
            loss(task, place) if self.sizes[task] else None
            for task, place in enumerate(self.slices)
        ]


class TaskView:
    """Which task each row of a batch is of."""

    def __init__(self, sizes: tuple[int, ...], device: torch.device) -> None:
        self.sizes = sizes
        self.index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(
            device
        )
        self._even = len(set(sizes)) == 1

    def alone(self, task: int) -> tuple[int, ...]:
        """Return the sizes of a batch of one task's rows only."""
        return tuple(size if i == task else 0 for i, size in enumerate(self.sizes))

    def means(self, rows: Tensor) -> list[Tensor | None]:
        """Return the mean over each task's rows, None where there are none."""
        if self._even:
            return list(rows.view(len(self.sizes), -1).mean(dim=1).unbind())
        parts = rows.split(list(self.sizes))
        return [part.mean() if len(part) else None for part in parts]

    def sums(self, rows: Tensor) -> Tensor:
        """Return the sum over each task's rows, shape (k,)."""
        if self._even:
            return rows.view(len(self.sizes), -1).sum(dim=1)
        return torch.stack([part.sum() for part in rows.split(list(self.sizes))])


class Replay:
    """A ring of transitions for each task, all of the same length.

    Args:
        tasks: Number of tasks k.
        capacity: Transitions kept per task.
        observation: Numbers in an observation.
        action: Numbers in an action.
        seed: Seed of the draws.
        device: Where the tensors are.

    Raises:
        ValueError: A number is below 1.

    Example:
        >>> import torch
        >>> replay = Replay(2, capacity=4, observation=3, action=1)
        >>> for t in range(6):
        ...     seen = torch.full((2, 3), float(t))
        ...     replay.add(seen, torch.zeros(2, 1), torch.zeros(2), seen + 1)
        >>> len(replay)
        4
        >>> batch = replay.stratified(5)
        >>> batch.observations.shape, batch.sizes
        (torch.Size([10, 3]), (5, 5))
    """

    def __init__(
        self,
        tasks: int,
        capacity: int,
        observation: int = 39,
        action: int = 4,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (
            ("tasks", tasks),
            ("capacity", capacity),
            ("observation", observation),
            ("action", action),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        self.tasks = tasks
        self.capacity = capacity
        shapes = ((observation,), (action,), (), (observation,))
        self._rows = {
            name: torch.empty(tasks, capacity, *shape, device=device)
            for name, shape in zip(_FIELDS, shapes, strict=True)
        }
        # Draws are made on the CPU: the same on every device.
        self._draws = torch.Generator().manual_seed(seed)
        self._size = 0
        self._next = 0

    def __len__(self) -> int:
        """Return the number of transitions of each task."""
        return self._size

    def add(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, next_observations: Tensor
    ) -> None:
        """Keep one transition of every task, in the place of the oldest where there is no room.

        Args:
            observations: Shape (k, observation).
            actions: Shape (k, action).
            rewards: Shape (k,).
            next_observations: Shape (k, observation).

        Raises:
            ValueError: A tensor has another shape.
        """
        given = (observations, actions, rewards, next_observations)
        places = [self._rows[name][:, self._next] for name in _FIELDS]
        for name, values, place in zip(_FIELDS, given, places, strict=True):
            if values.shape != place.shape:
                raise ValueError(
                    f"{name} must have shape {tuple(place.shape)}, found {tuple(values.shape)}"
                )
        for values, place in zip(given, places, strict=True):
            place.copy_(values)
        self._next = (self._next + 1) % self.capacity
        self._size = min(self._size + 1, self.capacity)

    def stratified(self, per_task: int) -> ReplayBatch:
        """Draw equally many transitions of every task, with replacement.

        Args:
            per_task: Transitions of each task, at least 1.

        Returns:
            k * ``per_task`` rows.

        Raises:
            ValueError: The replay is empty, or ``per_task`` is below 1.
        """
        self._require(per_task)
        at = torch.randint(self._size, (self.tasks, per_task), generator=self._draws)
        flat = (at + torch.arange(self.tasks)[:, None] * self.capacity).flatten()
        return self._batch(flat, (per_task,) * self.tasks)

    def uniform(self, size: int) -> ReplayBatch:
        """Draw transitions of all tasks as from one buffer, with replacement.

        Args:
            size: Transitions of all tasks together, at least 1.

        Returns:
            ``size`` rows; how many are of each task is random, and may be 0.

        Raises:
            ValueError: The replay is empty, or ``size`` is below 1.
        """
        self._require(size)
        at = torch.randint(self._size * self.tasks, (size,), generator=self._draws).sort().values
        task = at // self._size
        counts = torch.bincount(task, minlength=self.tasks)
        return self._batch(task * self.capacity + at % self._size, tuple(counts.tolist()))

    def _require(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a batch holds at least 1 transition per draw, found {size}")
        if not self._size:
            raise ValueError("the replay is empty: add transitions before drawing")

    def _batch(self, flat: Tensor, sizes: tuple[int, ...]) -> ReplayBatch:
        rows = {
            name: values.flatten(0, 1).index_select(0, flat.to(values.device))
            for name, values in self._rows.items()
        }
        return ReplayBatch(**rows, sizes=sizes)

    def state_dict(self) -> dict[str, Any]:
        """Return the transitions and the state of the random draws."""
        rows = {name: v[:, : self._size].cpu().clone() for name, v in self._rows.items()}
        return {**rows, "next": self._next, "draws": self._draws.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Args:
            state: That of a replay with the same tasks, capacity, observation and action.

        Raises:
            ValueError: It has another number of tasks, or observations or actions of another size,
                or is of a replay with another capacity.
        """
        size, following = state["rewards"].shape[1], int(state["next"])
        for name, values in self._rows.items():
            found = state[name]
            if found.shape[0] != self.tasks or found.shape[2:] != values.shape[2:]:
                raise ValueError(
                    f"{name} of the state have shape {tuple(found.shape)}, this replay's "
                    f"{tuple(values.shape)}"
                )
        # The next place follows the last one until the ring is full.
        if not (following == size < self.capacity or following < size == self.capacity):
            raise ValueError(
                f"the state holds {size} transitions per task, the next one in place {following}; "
                f"it is not of a replay of capacity {self.capacity}"
            )
        for name, values in self._rows.items():
            values[:, :size] = state[name].to(values.device)
        self._size = size
        self._next = following
        self._draws.set_state(state["draws"])
