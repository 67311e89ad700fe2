"""The networks of multi-task Soft Actor-Critic, their losses row by row, and gradients by task.

The rows of a batch do not interact inside the networks. So one backward pass of the sum of the
losses leaves, at the output of every linear layer, each task's own gradient in its own rows;
multiplied with the layer's inputs, task by task, they are the k gradients of its weights. The
arithmetic is that of one ordinary backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Actor",
    "Encoding",
    "Heads",
    "Shape",
    "TaskEncoder",
    "TwinCritic",
    "TwinLinear",
    "actor_rows",
    "critic_rows",
    "errors",
    "judged",
    "squash",
    "target_rows",
    "with_task_gradients",
]

Heads = Literal["shared", "multi"]
Encoding = Literal["none", "one-hot", "learned"]

LOG_DEVIATION = (-20.0, 2.0)
"""Bounds of the logarithm of the policy's deviation before squashing."""

Trace = list[tuple[nn.Module, Tensor, Tensor]]
"""Linear layers with what went in and what came out, in the order of the pass."""

_EMBEDDING = 50


@dataclass(frozen=True)
class Shape:
    """What the networks of actor and critics have in common.

    Attributes:
        tasks: Number of tasks k.
        hidden: Widths of the hidden layers, with ReLU after each.
        heads: One output layer for all tasks, or one each.
        encoding: See :class:`TaskEncoder`.
    """

    tasks: int
    hidden: Sequence[int]
    heads: Heads
    encoding: Encoding


class TaskEncoder(nn.Module):
    """Adds a code of the task to the inputs of a network.

    Args:
        tasks: Number of tasks k.
        encoding: ``"none"``: not at all; ``"one-hot"``; or ``"learned"``: an embedding of 50
            numbers and two layers of 50, trained with the network that reads it.
    """

    def __init__(self, tasks: int, encoding: Encoding) -> None:
        super().__init__()
        self.code: Tensor | nn.Module
        self.encoding = encoding
        self.width = {"none": 0, "one-hot": tasks, "learned": _EMBEDDING}[encoding]
        if encoding == "one-hot":
            self.register_buffer("code", torch.eye(tasks), persistent=False)
        elif encoding == "learned":
            self.code = nn.Sequential(
                nn.Embedding(tasks, _EMBEDDING),
                nn.Linear(_EMBEDDING, _EMBEDDING),
                nn.ReLU(),
                nn.Linear(_EMBEDDING, _EMBEDDING),
            )

    def forward(self, inputs: Sequence[Tensor], index: Tensor) -> Tensor:
        """Return the inputs side by side, shape (B, sum of d), with the tasks' codes behind them.

        Args:
            inputs: One or more of shape (B, d).
            index: The task of each row, int64 of shape (B,).
        """
        if self.encoding == "none":
            return inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), dim=1)
        codes = self.code[index] if isinstance(self.code, Tensor) else self.code(index)
        return torch.cat([*inputs, codes], dim=1)


class TwinLinear(nn.Module):
    """Two linear layers side by side, initialized as ``nn.Linear`` is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(2, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map (2, B, inputs), or (B, inputs) for both, to (2, B, outputs)."""
        if x.ndim == 2:
            x = x.expand(2, -1, -1)
        return torch.baddbmm(self.bias, x, self.weight)


def _layers(
    kind: Callable[[int, int], nn.Module], inputs: int, hidden: Sequence[int]
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [kind(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


class _Network(nn.Module):
    """A trunk, and one head for all tasks or one for each."""

    rows: int
    """Dimension of the rows in features."""

    def __init__(
        self, layer: Callable[[int, int], nn.Module], inputs: int, outputs: int, shape: Shape
    ) -> None:
        super().__init__()
        self.encoder = TaskEncoder(shape.tasks, shape.encoding)
        self.trunk = _layers(layer, inputs + self.encoder.width, shape.hidden)
        count = shape.tasks if shape.heads == "multi" else 1
        self.heads = nn.ModuleList(layer(shape.hidden[-1], outputs) for _ in range(count))
        self.trace: Trace | None = None
        """Where set, linear layers are noted with what goes in and what comes out."""

    @property
    def traceable(self) -> bool:
        """Whether a trace meets every parameter, and rows of all tasks in every layer."""
        return len(self.heads) == 1 and self.encoder.encoding != "learned"

    def _run(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        output: Tensor = layer(inputs)
        if self.trace is not None:
            self.trace.append((layer, inputs, output))
        return output

    def _climb(self, inputs: Tensor) -> Tensor:
        for layer in self.trunk:
            if not isinstance(layer, nn.ReLU):
                inputs = self._run(layer, inputs)
            elif self.trace is None:
                # In place, as nothing else reads a linear layer's output unless it is traced.
                inputs = inputs.relu_()
            else:
                inputs = inputs.relu()
        return inputs

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield what all tasks share: everything, or all but the heads where each has its own."""
        if len(self.heads) == 1:
            yield from self.parameters()
        else:
            yield from self.encoder.parameters()
            yield from self.trunk.parameters()

    def head(self, features: Tensor, task: int) -> Tensor:
        """Apply a task's head to features of that task only."""
        return self._run(self.heads[task if len(self.heads) > 1 else 0], features)

    def read(self, features: Tensor, sizes: Sequence[int]) -> Tensor:
        """Apply the heads to the features of several tasks.

        Args:
            features: The trunk's output; rows of one task are contiguous.
            sizes: Number of rows of each task.
        """
        if len(self.heads) == 1:
            return self.head(features, 0)
        parts = features.split(list(sizes), dim=self.rows)
        read = [self.head(part, i) for i, part in enumerate(parts) if sizes[i]]
        return torch.cat(read, dim=self.rows)


class Actor(_Network):
    """The policy: a normal distribution per action, squashed by tanh."""

    rows = 0

    def __init__(self, observation: int, action: int, shape: Shape) -> None:
        super().__init__(nn.Linear, observation, 2 * action, shape)

    def represent(self, observations: Tensor, index: Tensor) -> Tensor:
        """Return the features z, shape (B, width)."""
        return self._climb(self.encoder([observations], index))

    def forward(self, observations: Tensor, index: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return means and log deviations before squashing, shape (B, 2 * action).

        Args:
            observations: Shape (B, observation), rows of one task together.
            index: The task of each row, shape (B,).
            sizes: Number of rows of each task.
        """
        return self.read(self.represent(observations, index), sizes)


class TwinCritic(_Network):
    """Two critics side by side."""

    rows = 1

    def __init__(self, observation: int, action: int, shape: Shape) -> None:
        super().__init__(TwinLinear, observation + action, 1, shape)

    def represent(self, observations: Tensor, actions: Tensor, index: Tensor) -> Tensor:
        """Return the features z of both, shape (2, B, width)."""
        return self._climb(self.encoder([observations, actions], index))

    def forward(
        self, observations: Tensor, actions: Tensor, index: Tensor, sizes: Sequence[int]
    ) -> Tensor:
        """Return both values, shape (2, B). Arguments as for :class:`Actor`."""
        z = self.represent(observations, actions, index)
        return self.read(z, sizes).squeeze(-1)


def squash(output: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw actions and return their log probabilities.

    Args:
        output: Means and log deviations, shape (B, 2 * action).
        noise: Standard normal, shape (B, action).

    Returns:
        tanh(u) for u = mean + deviation * noise, shape (B, action), and
        log N(u) - sum log(1 - tanh(u)^2), shape (B,).
    """
    noise = noise.to(output.dtype)
    mean, log_deviation = output.chunk(2, dim=1)
    log_deviation = log_deviation.clamp(*LOG_DEVIATION)
    u = mean + log_deviation.exp() * noise
    normal = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2), which loses all its digits where |u| is large, in a form that does not.
    slope = 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))
    return u.tanh(), (normal - slope).sum(dim=1)


# ------------------------------------------------------------------------------------------------
# Losses row by row


def target_rows(
    actor: Actor,
    target: TwinCritic,
    seen: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    alpha: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the target critics' value of a new action in each row, less alpha log pi."""
    action, log_probability = squash(actor(seen, index, sizes), noise)
    soft: Tensor = target(seen, action, index, sizes).amin(dim=0) - alpha * log_probability
    return soft


def critic_rows(
    critic: TwinCritic,
    seen: Tensor,
    actions: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    targets: Tensor,
) -> Tensor:
    """Return the critics' loss in each row."""
    return errors(critic(seen, actions, index, sizes), targets)


def errors(values: Tensor, targets: Tensor) -> Tensor:
    """Return the critics' loss in each row from their values, shape (2, rows)."""
    return (values - targets).square().sum(dim=0)


def actor_rows(
    actor: Actor,
    critic: TwinCritic,
    seen: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    alpha: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the actor's loss in each row, and the log probability of the action drawn there."""
    return judged(critic, actor(seen, index, sizes), seen, index, sizes, alpha, noise)


def judged(
    critic: TwinCritic,
    output: Tensor,
    seen: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    alpha: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the same as :func:`actor_rows` from the output of the actor."""
    action, log_probability = squash(output, noise)
    terms: Tensor = alpha * log_probability - critic(seen, action, index, sizes).amin(dim=0)
    return terms, log_probability.detach()


# ------------------------------------------------------------------------------------------------
# Gradients task by task


def with_task_gradients(
    losses: Sequence[Tensor | None],
    trace: Trace,
    sizes: Sequence[int],
    parameters: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return the losses with gradients that are known already.

    Args:
        losses: k losses of one pass, each of its own task's rows alone; None for a task without
            rows. Their graph is used up.
        trace: The layers of the pass.
        sizes: Number of rows of each task, which are contiguous.
        parameters: Of the traced layers, in any order.

    Returns:
        The k losses. Differentiating one gives its gradients with respect to ``parameters`` and
        nothing else.
    """
    live = [loss for loss in losses if loss is not None]
    deltas = torch.autograd.grad(live, [output for _, _, output in trace])
    present = [size for size in sizes if size]
    by_parameter: dict[int, list[Tensor]] = {}
    for (layer, inputs, _), delta in zip(trace, deltas, strict=True):
        inputs = inputs.detach()
        if isinstance(layer, TwinLinear):
            inputs = inputs.expand(2, -1, -1) if inputs.ndim == 2 else inputs
            weight, bias = _twin(inputs, delta, present)
        else:
            assert isinstance(layer, nn.Linear)
            weight, bias = _linear(inputs, delta, present)
        by_parameter[id(layer.weight)] = weight
        by_parameter[id(layer.bias)] = bias
    by_task = zip(*(by_parameter[id(p)] for p in parameters), strict=True)
    known: Callable[..., Tensor] = _Known.apply
    return [
        None if loss is None else known(loss.detach(), next(by_task), *parameters)
        for loss in losses
    ]


def _linear(x: Tensor, d: Tensor, sizes: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return gradients of weight (outputs, inputs) and bias (outputs,) of each task."""
    if len(set(sizes)) == 1:
        x, d = x.unflatten(0, (len(sizes), -1)), d.unflatten(0, (len(sizes), -1))
        return list(d.transpose(1, 2) @ x), list(d.sum(dim=1))
    parts = list(zip(x.split(list(sizes)), d.split(list(sizes)), strict=True))
    return [di.T @ xi for xi, di in parts], [di.sum(dim=0) for _, di in parts]


def _twin(x: Tensor, d: Tensor, sizes: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return gradients of weight (2, inputs, outputs) and bias (2, 1, outputs) of each task."""
    parts = list(zip(x.split(list(sizes), dim=1), d.split(list(sizes), dim=1), strict=True))
    return [xi.transpose(1, 2) @ di for xi, di in parts], [
        di.sum(dim=1, keepdim=True) for _, di in parts
    ]


class _Known(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        factor = float(outputs[0])
        gradients = ctx.gradients
        if factor != 1.0:
            gradients = torch._foreach_mul(gradients, factor)
        return (None, None, *gradients)
