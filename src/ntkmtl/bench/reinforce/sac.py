"""Multi-task Soft Actor-Critic, its tasks balanced by any method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ntkmtl.balance import Balancer
from ntkmtl.bench.reinforce.networks import (
    Actor,
    Encoding,
    Heads,
    Shape,
    TwinCritic,
    actor_rows,
    critic_rows,
    errors,
    judged,
    squash,
    target_rows,
    with_task_gradients,
)
from ntkmtl.bench.reinforce.replay import ReplayBatch, TaskView
from ntkmtl.weighting import load, spec

__all__ = ["MultiTaskSAC", "Part", "Update", "unsuited"]

Part = Literal["critic", "actor"]


def unsuited(method: str) -> str:
    """Return why a method cannot balance this algorithm, ``""`` if it can.

    Example:
        >>> unsuited("ntkmtl"), unsuited("consmtl")
        ('', 'it needs heads with an objective of their own')
    """
    entry, kind = spec(method), load(method)
    if entry.name == "stl":
        return "it is one agent per task: make a MultiTaskSAC of one task"
    if kind.has_head_objective:
        return "it needs heads with an objective of their own"
    if entry.requires == "kernel":
        return "it needs several mini-batches of each task"
    if entry.defaults.get("source") == "auto":
        return "it looks for a source in features of one batch; choose ntkmtl or ntkmtl-sr"
    if kind.needs_scores:
        return "it needs scores against single-task networks during training"
    return ""


@dataclass(frozen=True)
class Update:
    """The numbers of one update, NaN for a task that the batch had no rows of.

    Attributes:
        critic_losses: Shape (k,).
        actor_losses: Shape (k,).
        critic_weights: Task weights of the critics' losses, shape (k,).
        actor_weights: Those of the actor's.
        critic_eigenvalues: Largest eigenvalue per task where the method reads them and this update
            made a kernel, else None.
        temperatures: Shape (k,).
    """

    critic_losses: Tensor
    actor_losses: Tensor
    critic_weights: Tensor
    actor_weights: Tensor
    critic_eigenvalues: Tensor | None
    temperatures: Tensor


class MultiTaskSAC:
    r"""Soft Actor-Critic with k tasks in one actor and two critics.

    Per task i with rows (s, a, r, s') of the batch, :math:`a' \sim \pi(s')` and the target critics
    :math:`\bar Q`:

    .. math::
        y = r + \gamma (\min_j \bar Q_j(s', a') - \alpha \log \pi(a' | s'))

        L^{critic}_i = \mathrm{mean} \sum_j (Q_j(s, a) - y)^2

        L^{actor}_i = \mathrm{mean} (\alpha \log \pi(a|s) - \min_j Q_j(s, a)), a \sim \pi(s)

    and the temperature descends along the plain mean over all rows of
    :math:`\alpha (-\log \pi(a|s) - H)`, H being ``target_entropy``. The k losses of the critics,
    both together, and those of the actor each have a :class:`ntkmtl.Balancer`.

    For methods that read gradients of parameters, one pass over the batch leaves each task's own
    gradients in its own rows, from which those of the parameters are made, task by task. Where
    there are several heads or a learned encoding, each task's rows go through the network on their
    own instead: k small passes. Either way the gradients, once weighted, are the update; there is
    no second pass. In updates that reuse weights (``every``), and for methods that read losses
    only, there is one ordinary backward pass.

    Args:
        tasks: Number of tasks k.
        observation: Numbers in an observation.
        action: Numbers in an action.
        hidden: Widths of the hidden layers of actor and critics.
        heads: ``"shared"``, or ``"multi"``: an output layer for each task.
        encoding: How networks are given the task: ``"none"``, ``"one-hot"`` or ``"learned"``.
        method: A name from :func:`ntkmtl.weighting.names`; ``"ls"`` is plain multi-task SAC.
        method_options: Settings of the method, such as ``exponent``.
        balance: Whose losses the method weighs; the plain sum is taken for the other. Both if None,
            but only the critics' for methods that look at losses: the actor's may be negative.
        every: Make weights in each ``every``-th update and keep them in between.
        learning_rate: Of Adam, for all of it.
        gamma: Discount.
        tau: How far the target critics move toward the critics in each update.
        temperature: One ``"shared"`` temperature, or one ``"per-task"``.
        initial_temperature: Where it starts.
        target_entropy: H; minus the number of actions if None.
        seed: Seed of the initial weights and of the noise. Methods that draw at random draw from
            torch's global state.
        device: Where all of it is.
        compile: Put what comes from one pass over the batch through ``torch.compile``: the targets,
            and the losses of updates that need no gradients task by task. The same numbers up to
            rounding.

    Attributes:
        always_slice: Whether each task's rows always go through the network on their own. The same
            numbers up to rounding; slower.
        updates: Number of updates made.

    Raises:
        ValueError: The method does not suit, or a number is out of range.
        DeviceError: ``compile`` without a C++ compiler.

    Example:
        >>> import torch
        >>> from ntkmtl.bench.reinforce import MultiTaskSAC, Replay
        >>> replay, agent = Replay(2, 16, 3, 1), MultiTaskSAC(2, 3, 1, (8, 8), method="ntkmtl")
        >>> for _ in range(16):
        ...     replay.add(
        ...         torch.randn(2, 3), torch.rand(2, 1), torch.rand(2), torch.randn(2, 3)
        ...     )
        >>> agent.update(replay.stratified(4)).critic_weights.shape
        torch.Size([2])
        >>> agent.act(torch.zeros(2, 3)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        tasks: int,
        observation: int = 39,
        action: int = 4,
        hidden: Sequence[int] = (400, 400, 400),
        *,
        heads: Heads = "shared",
        encoding: Encoding = "one-hot",
        method: str = "ls",
        method_options: Mapping[str, Any] | None = None,
        balance: Sequence[Part] | None = None,
        every: int = 1,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        tau: float = 0.005,
        temperature: Literal["shared", "per-task"] = "shared",
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        compile: bool = False,
    ) -> None:
        _check_numbers(tasks, hidden, gamma, tau, initial_temperature)
        _one_of("heads", heads, ("shared", "multi"))
        _one_of("encoding", encoding, ("none", "one-hot", "learned"))
        _one_of("temperature", temperature, ("shared", "per-task"))
        if why := unsuited(method):
            raise ValueError(f"{method} does not suit multi-task SAC: {why}")
        self.tasks = tasks
        self.gamma = gamma
        self.tau = tau
        self.target_entropy = -float(action) if target_entropy is None else target_entropy
        self.device = torch.device(device)
        self.method = method
        self.balance = _balanced(method, balance)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shape = Shape(tasks, tuple(hidden), heads, encoding)
            self.actor = Actor(observation, action, shape)
            self.critic = TwinCritic(observation, action, shape)
        self.actor.to(self.device)
        self.critic.to(self.device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        count = tasks if temperature == "per-task" else 1
        self.log_temperature = nn.Parameter(
            torch.full((count,), float(initial_temperature), device=self.device).log()
        )
        self._noise = torch.Generator(device=self.device).manual_seed(seed)
        self.critic_balancer = self._balancer("critic", self.critic, method_options, every)
        self.actor_balancer = self._balancer("actor", self.actor, method_options, every)
        self._optimizers = self._made_optimizers(learning_rate)
        self._last_view: TaskView | None = None
        self.updates = 0
        self.always_slice = False
        # What one pass over a batch takes; traced passes and those of a task alone stay eager.
        rows: list[Callable[..., Any]] = [target_rows, critic_rows, actor_rows]
        if compile:
            from ntkmtl.bench.compute.device import compiled

            rows = [compiled(function, self.device) for function in rows]
        self._target_rows, self._critic_rows, self._actor_rows = rows

    def _made_optimizers(self, learning_rate: float) -> dict[str, torch.optim.Adam]:
        critic = [*self.critic.parameters(), *self.critic_balancer.parameters()]
        actor = [*self.actor.parameters(), *self.actor_balancer.parameters()]
        # Adam treats each number separately, so the temperature needs no optimizer of its own.
        parts = {"critic": critic, "actor": [*actor, self.log_temperature]}
        return {
            part: torch.optim.Adam(parameters, lr=learning_rate, fused=True)
            for part, parameters in parts.items()
        }

    def _balancer(
        self,
        part: Part,
        network: Actor | TwinCritic,
        options: Mapping[str, Any] | None,
        every: int,
    ) -> Balancer:
        if part not in self.balance or self.method == "ls":
            return Balancer("ls", tasks=self.tasks)
        defaults = spec(self.method).defaults
        settings: dict[str, Any] = {"tasks": self.tasks, **(options or {})}
        if spec(self.method).requires == "losses":
            return Balancer(self.method, **settings)
        settings.setdefault("every", every)
        if settings.get("source", defaults.get("source")) == "exact":
            settings["shared"] = list(network.shared_parameters())
        else:
            if len(network.heads) == 1 and self.tasks > 1:
                raise ValueError(
                    f"{self.method} reads the features that heads share, and here all tasks have "
                    "one head; set heads='multi'"
                )
            settings["batch_dim"] = network.rows
        return Balancer(self.method, **settings)

    # ------------------------------------------------------------------ acting

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        """Return one action per task.

        Args:
            observations: One per task, shape (k, observation).
            deterministic: The squashed mean instead of a draw.

        Returns:
            Shape (k, action), on the CPU.
        """
        index = torch.arange(self.tasks, device=self.device)
        output = self.actor(observations.to(self.device), index, (1,) * self.tasks)
        mean: Tensor = output.chunk(2, dim=1)[0]
        if deterministic:
            return mean.tanh().cpu()
        return squash(output, self._draw(mean.shape))[0].cpu()

    def _draw(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self._noise, device=self.device)

    # ------------------------------------------------------------------ learning

    def update(self, batch: ReplayBatch) -> Update:
        """Make one step of critics, actor and temperature, and move the target critics.

        Args:
            batch: Transitions with observations as the networks read them.

        Returns:
            Losses and weights of this update, and the temperatures after it.

        Raises:
            NonFiniteError: A loss or gradient is not finite. What it is of, critics or actor, is as
                before; the critics' step comes first, so it may have been made.
        """
        view = self._last_view
        if view is None or view.sizes != batch.sizes:
            view = self._last_view = TaskView(batch.sizes, self.device)
        alpha = self._alpha(view.index)
        fresh, drawn = self._draw(batch.actions.shape), self._draw(batch.actions.shape)
        targets = self._targets(batch, view, alpha, fresh)
        critic = self._descend(
            "critic",
            view,
            (batch.observations, batch.actions, view.index),
            joint=partial(self.critic_losses, batch, view, targets),
            alone=partial(self._critic_losses_alone, batch, view, targets),
        )
        self.critic.requires_grad_(False)
        try:
            # Log probabilities of the actions, for the temperature.
            self._log_probabilities: dict[int, Tensor] = {}
            actor = self._descend(
                "actor",
                view,
                (batch.observations, view.index),
                joint=partial(self.actor_losses, batch, view, alpha, drawn),
                alone=partial(self._actor_losses_alone, batch, view, alpha, drawn),
                before_step=lambda: self._set_temperature_gradient(view),
            )
        finally:
            self.critic.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.target.parameters()), list(self.critic.parameters()), self.tau
            )
        self.updates += 1
        return Update(
            critic[0],
            actor[0],
            critic[1],
            actor[1],
            critic[2],
            self._alpha(torch.arange(self.tasks, device=self.device)),
        )

    def end_epoch(self) -> None:
        """Tell the method that an epoch is over: some change their weights between epochs."""
        for balancer in (self.critic_balancer, self.actor_balancer):
            balancer.end_epoch()

    def _alpha(self, index: Tensor) -> Tensor:
        """Return the temperature of each row."""
        alpha = self.log_temperature.detach().exp()
        return alpha[index] if len(alpha) > 1 else alpha.expand(len(index))

    @torch.no_grad()
    def _targets(self, batch: ReplayBatch, view: TaskView, alpha: Tensor, noise: Tensor) -> Tensor:
        rows = (batch.next_observations, view.index, batch.sizes)
        soft: Tensor = self._target_rows(self.actor, self.target, *rows, alpha, noise)
        return batch.rewards + self.gamma * soft

    def _descend(
        self,
        part: Part,
        view: TaskView,
        seen: tuple[Tensor, ...],
        joint: Callable[[], list[Tensor | None]],
        alone: Callable[[list[Tensor] | None], list[Tensor | None]],
        before_step: Callable[[], None] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weight and differentiate the losses in the method's cheapest way, and take a step.

        Args:
            part: Whose losses.
            view: Which task each row of the batch is of.
            seen: What the network reads.
            joint: Returns the losses of one pass over the batch.
            alone: Returns the losses of passes over the rows of each task alone, through the whole
                network, or through the heads from the features of each task.
            before_step: Called with the gradients in place.
        """
        network: Actor | TwinCritic = self.critic if part == "critic" else self.actor
        balancer = self.critic_balancer if part == "critic" else self.actor_balancer
        optimizer = self._optimizers[part]
        optimizer.zero_grad(set_to_none=True)
        features = None
        if balancer.weighting.requires == "losses":
            losses = joint()
        elif balancer.source == "exact":
            if balancer.reuses([task for task, size in enumerate(view.sizes) if size]):
                losses = joint()
            elif network.traceable and not self.always_slice:
                losses = self._traced(network, balancer, joint, view.sizes)
            else:
                losses = alone(None)
        else:
            features = list(network.represent(*seen).split(list(view.sizes), dim=network.rows))
            losses = alone(features)
        out = balancer.backward(losses, features)
        if before_step is not None:
            before_step()
        optimizer.step()
        if balancer.needs_after_step:
            balancer.after_step(joint)
        absent = torch.full((), torch.nan, device=self.device)
        values = torch.stack([absent if v is None else v.detach() for v in losses])
        # One copy for all, as a GPU waits for each.
        return values.cpu(), out.weights.cpu(), out.eigenvalues

    @staticmethod
    def _traced(
        network: Actor | TwinCritic,
        balancer: Balancer,
        joint: Callable[[], list[Tensor | None]],
        sizes: Sequence[int],
    ) -> list[Tensor | None]:
        """Return the losses of one pass over the batch, with each task's gradients."""
        network.trace = []
        try:
            losses = joint()
            trace = network.trace
        finally:
            network.trace = None
        return with_task_gradients(losses, trace, sizes, balancer.shared or [])

    def critic_losses(
        self, batch: ReplayBatch, view: TaskView, targets: Tensor
    ) -> list[Tensor | None]:
        """Return the k losses of both critics, from one pass over the batch.

        Args:
            batch: B transitions.
            view: Which task each row of the batch is of.
            targets: y of each row, shape (B,).

        Returns:
            One scalar per task: its mean squared errors, summed over both critics. None for a task
            without rows.
        """
        # A trace is of layers one by one, which compiled code no longer has.
        rows = self._critic_rows if self.critic.trace is None else critic_rows
        place = (batch.observations, batch.actions, view.index, batch.sizes)
        return view.means(rows(self.critic, *place, targets))

    def _critic_losses_alone(
        self,
        batch: ReplayBatch,
        view: TaskView,
        targets: Tensor,
        features: list[Tensor] | None,
    ) -> list[Tensor | None]:
        def loss(task: int, place: slice) -> Tensor:
            if features is None:
                rows = (batch.observations[place], batch.actions[place], view.index[place])
                values = self.critic(*rows, view.alone(task))
            else:
                values = self.critic.head(features[task], task).squeeze(-1)
            return errors(values, targets[place]).mean()

        return batch.of_each(loss)

    def actor_losses(
        self, batch: ReplayBatch, view: TaskView, alpha: Tensor, noise: Tensor
    ) -> list[Tensor | None]:
        """Return the k losses of the actor, from one pass over the batch.

        Args:
            batch: B transitions.
            view: Which task each row of the batch is of.
            alpha: Temperature of each row, shape (B,).
            noise: What actions are drawn with, standard normal of shape (B, action).

        Returns:
            One scalar per task, None for a task without rows.
        """
        rows = self._actor_rows if self.actor.trace is None else actor_rows
        place = (batch.observations, view.index, batch.sizes)
        terms, self._log_probabilities[0] = rows(self.actor, self.critic, *place, alpha, noise)
        return view.means(terms)

    def _actor_losses_alone(
        self,
        batch: ReplayBatch,
        view: TaskView,
        alpha: Tensor,
        noise: Tensor,
        features: list[Tensor] | None,
    ) -> list[Tensor | None]:
        def loss(task: int, place: slice) -> Tensor:
            rows = (batch.observations[place], view.index[place], view.alone(task))
            if features is None:
                output = self.actor(*rows)
            else:
                output = self.actor.head(features[task], task)
            terms, self._log_probabilities[task] = judged(
                self.critic, output, *rows, alpha[place], noise[place]
            )
            return terms.mean()

        return batch.of_each(loss)

    @torch.no_grad()
    def _set_temperature_gradient(self, view: TaskView) -> None:
        """Set the temperature's gradient, that of the plain mean of its loss over all rows.

        The loss of a row, alpha * (-log pi - H), is its own derivative by log alpha.
        """
        pieces = self._log_probabilities
        log_probability = torch.cat([pieces[key] for key in sorted(pieces)])
        terms = self._alpha(view.index) * (-log_probability - self.target_entropy)
        sums = view.sums(terms) if len(self.log_temperature) > 1 else terms.sum().reshape(1)
        self.log_temperature.grad = (sums / len(terms)).to(self.log_temperature.dtype)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return all that later updates depend on, besides batches and torch's global state."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "log_temperature": self.log_temperature.detach().clone(),
            "optimizers": {name: o.state_dict() for name, o in self._optimizers.items()},
            "critic_balancer": self.critic_balancer.state_dict(),
            "actor_balancer": self.actor_balancer.state_dict(),
            "noise": self._noise.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Args:
            state: That of an agent made with the same arguments.

        Raises:
            RuntimeError: The networks in the state are of other sizes.
            ValueError: The state is of another method, or of another number of temperatures.
        """
        found = state["log_temperature"].shape
        if found != self.log_temperature.shape:
            raise ValueError(
                f"the state has temperatures of shape {tuple(found)}, this agent of shape "
                f"{tuple(self.log_temperature.shape)}: make it with the same arguments"
            )
        for name in ("actor", "critic", "target", "critic_balancer", "actor_balancer"):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._noise.set_state(state["noise"])
        self.updates = int(state["updates"])

    def parameter_count(self) -> int:
        """Return the number of trainable parameters of actor, critics and temperature."""
        networks = [*self.actor.parameters(), *self.critic.parameters(), self.log_temperature]
        return sum(p.numel() for p in networks)


def _check_numbers(
    tasks: int, hidden: Sequence[int], gamma: float, tau: float, initial_temperature: float
) -> None:
    for name, value in (("gamma", gamma), ("tau", tau)):
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{name} must be in (0, 1], found {value}")
    if not initial_temperature > 0:
        raise ValueError(f"initial_temperature must be positive, found {initial_temperature}")
    if tasks < 1 or not hidden:
        raise ValueError(
            f"at least one task and one hidden layer are needed, found {tasks} tasks and "
            f"hidden={tuple(hidden)}"
        )


def _balanced(method: str, asked: Sequence[Part] | None) -> tuple[Part, ...]:
    """Return the parts whose losses are weighted, by default those that suit the method."""
    chosen: tuple[Part, ...] = ("critic", "actor")
    if asked is not None:
        chosen = tuple(asked)
    elif (
        spec(method).requires == "losses"
        # It refuses negative losses, or takes their logarithms.
        or load(method).needs_positive_losses
        or spec(method).defaults.get("log_losses")
    ):
        chosen = ("critic",)
    for part in chosen:
        _one_of("balance", part, ("critic", "actor"))
    return chosen


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}")
