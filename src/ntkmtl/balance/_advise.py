"""Advice on how to use the library for a network, its losses and its training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from ntkmtl.balance._balancer import Balancer
from ntkmtl.balance._explain import Explanation
from ntkmtl.balance._read import Losses, task_names

__all__ = ["RULES", "Advice", "Framework", "Loop", "Rule", "Situation", "advise"]

Loop = Literal["plain", "accumulation", "closure", "scaler", "turns", "processes"]
Framework = Literal["pytorch", "accelerate", "lightning", "trainer", "keras", "torchjd"]


@dataclass(frozen=True)
class Situation:
    """Everything that the advice depends on.

    Attributes:
        tasks: Number of losses k.
        connected: Whether any two losses share trained parameters.
        clean: Whether every loss's whole gradient passes through the representation.
        means: Whether the losses are scalars instead of losses of single samples.
        budget: Allowed cost of a step relative to plain training.
        exact_price: Cost of a step with an exact kernel relative to plain training.
        every_step: Whether weights should be updated in every step.
        priorities: Importance of the tasks, by name.
        keep_learning_rate: Whether the learning rate was tuned for the plain sum.
        loop: How the loop differs from one ``backward`` and one step per batch.
        framework: The framework that runs the loop.
    """

    tasks: int
    connected: bool
    clean: bool
    means: bool
    budget: float
    exact_price: float
    every_step: bool
    priorities: Mapping[str, float]
    keep_learning_rate: bool
    loop: Loop
    framework: Framework


@dataclass(frozen=True)
class Rule:
    """One row of the decision guide.

    Attributes:
        decides: Topic of the row: the method, an option, or the call of ``backward``. The first row
            on the method that applies is used, and all other rows that apply.
        have: The user's situation, in words.
        code: The code to write; ``{budget}`` and ``{priorities}`` are filled in.
        why: The reason.
        page: Page with details, relative to ``docs``.
        applies: Returns whether the row applies to a situation.
    """

    decides: Literal["method", "option", "call"]
    have: str
    code: str
    why: str
    page: str
    applies: Callable[[Situation], bool]


RULES: tuple[Rule, ...] = (
    Rule(
        "method",
        "losses that share nothing that is trained, or one loss alone",
        "sum(losses.values()).backward()",
        "There is nothing to balance: every weight would be 1.",
        "guide.md#lora-and-frozen-trunks",
        lambda s: not s.connected,
    ),
    Rule(
        "method",
        "a budget for an exact kernel in every step, 1 + 0.7 k or more",
        'Balancer("ntkmtl")',
        "The method of the paper: a backward pass per loss in every step.",
        "methods/ntkmtl.md",
        lambda s: s.budget >= s.exact_price,
    ),
    Rule(
        "method",
        "heads on a trunk, and weights to be updated in every step",
        'Balancer("ntkmtl-sr")',
        "Every gradient passes through the representation, whose kernel costs almost nothing.",
        "methods/ntkmtl-sr.md",
        lambda s: s.every_step and s.clean,
    ),
    Rule(
        "method",
        "any network of several losses",
        "Balancer({budget})",
        "Exact kernels as often as the budget allows, averaged: right for any network.",
        "methods/ntkmtl-auto.md",
        lambda s: True,
    ),
    Rule(
        "option",
        "means of losses, and `ntkmtl-sr`",
        "minibatches=1",
        "Its default of 4 mini-batches needs losses of single samples.",
        "guide.md#losses-of-single-samples",
        lambda s: s.means and s.every_step and s.clean and s.budget < s.exact_price,
    ),
    Rule(
        "option",
        "a task that matters more",
        "priorities={priorities}",
        "A factor in front of a loss is balanced away; a priority is not.",
        "guide.md#priorities",
        lambda s: bool(s.priorities),
    ),
    Rule(
        "option",
        "a learning rate that was tuned for the plain sum",
        'length="plain"',
        "The combined gradient gets the length of the plain sum's gradient.",
        "length.md",
        lambda s: s.keep_learning_rate,
    ),
    Rule(
        "option",
        "batches that show one task at a time",
        "tasks=names, shared=trunk.parameters()",
        "The graph of one loss does not show what it shares with the others.",
        "guide.md#tasks-that-take-turns",
        lambda s: s.loop == "turns",
    ),
    Rule(
        "call",
        "a custom training loop",
        "balancer.backward(losses)",
        "It replaces `sum(losses.values()).backward()`.",
        "recipes/plain-pytorch.md",
        lambda s: s.framework == "pytorch" and s.loop in ("plain", "turns"),
    ),
    Rule(
        "call",
        "m batches per step (accumulation)",
        "with balancer.hold(): balancer.backward(losses, scale=1 / m)  # m times",
        "The first batch computes weights, the others reuse them.",
        "guide.md#accumulation-and-clipping",
        lambda s: s.framework == "pytorch" and s.loop == "accumulation",
    ),
    Rule(
        "call",
        "L-BFGS, SAM, or another optimizer with a closure",
        "with balancer.hold(): optimizer.step(closure)  # returns balancer.backward(losses).total",
        "All evaluations of a step must see one function.",
        "guide.md#l-bfgs-and-sam",
        lambda s: s.framework == "pytorch" and s.loop == "closure",
    ),
    Rule(
        "call",
        "fp16 with a gradient scaler",
        "balancer.backward(losses, scaler=scaler)",
        "Pass the losses unscaled; the scaler skips steps as always.",
        "guide.md#mixed-precision",
        lambda s: s.framework == "pytorch" and s.loop == "scaler",
    ),
    Rule(
        "call",
        "several processes (DistributedDataParallel)",
        "balancer.backward(losses)  # on every rank",
        "Kernels are joined over the ranks, and all ranks end with the same weights.",
        "guide.md#several-processes",
        lambda s: s.framework == "pytorch" and s.loop == "processes",
    ),
    Rule(
        "call",
        "accelerate",
        "accelerator.backward(losses)  # accelerator = BalancedAccelerator(balancer)",
        "It replaces `Accelerator`, and takes the losses instead of their sum.",
        "recipes/accelerate.md",
        lambda s: s.framework == "accelerate",
    ),
    Rule(
        "call",
        "Lightning",
        "return self.balance(losses)  # in training_step of a BalancedModule",
        "A mixin; automatic optimization stays.",
        "recipes/lightning.md",
        lambda s: s.framework == "lightning",
    ),
    Rule(
        "call",
        "the Hugging Face Trainer",
        "BalancedTrainer(model, args, train_dataset=data, balancer=balancer)",
        "It replaces `Trainer`; the model returns its losses and their sum.",
        "recipes/trainer.md",
        lambda s: s.framework == "trainer",
    ),
    Rule(
        "call",
        "Keras on the PyTorch backend",
        "model.compile(optimizer, losses, balancer=balancer)  # a BalancedModel(inputs, outputs)",
        "It replaces `keras.Model`; losses are a dict with a loss for each output.",
        "recipes/keras.md",
        lambda s: s.framework == "keras",
    ),
    Rule(
        "call",
        "TorchJD's engine",
        'as_torchjd("ntkmtl")(engine.compute_gramian(losses))',
        "It replaces a weighting of TorchJD.",
        "recipes/torchjd.md",
        lambda s: s.framework == "torchjd",
    ),
)
"""The decision guide, from which ``docs/decide.md`` is generated."""


@dataclass(frozen=True)
class Advice:
    """Two lines of code, and the reasons for them.

    Attributes:
        balancer: Code that creates the Balancer, before the loop; empty if none is needed.
        call: Code in place of ``sum(losses).backward()``.
        rules: The rows of the decision guide that apply.
        situation: The situation that they were chosen for.
        explanation: What the losses share.
    """

    balancer: str
    call: str
    rules: tuple[Rule, ...]
    situation: Situation
    explanation: Explanation

    def __str__(self) -> str:
        lines = [self.call] if not self.balancer else [f"balancer = {self.balancer}", self.call]
        return "\n".join([*lines, *(f"# {rule.why} (docs/{rule.page})" for rule in self.rules)])


def advise(
    losses: Losses,
    *,
    model: nn.Module | None = None,
    budget: float = 1.1,
    every_step: bool = False,
    priorities: Mapping[str, float] | None = None,
    keep_learning_rate: bool = False,
    loop: Loop = "plain",
    framework: Framework = "pytorch",
) -> Advice:
    """Print the lines of code that suit a network, its losses and its loop.

    What the losses share is found in the autograd graph; the rest comes from the arguments. Nothing
    is differentiated, and no ``.grad`` changes. The decision guide in the docs has the same rows.

    Args:
        losses: Losses of one batch, as :meth:`ntkmtl.Balancer.backward` takes them.
        model: The model, for names of parameters in ``Advice.explanation``.
        budget: Mean cost of a step relative to plain training, above 1.
        every_step: Whether weights should be updated in every step.
        priorities: Importance of the tasks, by name; 1 for missing names.
        keep_learning_rate: Whether the learning rate was tuned for the plain sum and should stay.
        loop: ``"plain"``: a batch per step; ``"accumulation"``; ``"closure"``: L-BFGS, SAM;
            ``"scaler"``: fp16; ``"turns"``: one task per batch; ``"processes"``: DDP.
        framework: The framework that runs the loop.

    Returns:
        The printed information as an object.

    Raises:
        ValueError: ``loop`` or ``framework`` is unknown, or ``budget`` or a priority is out of
            range.

    Example:
        >>> import torch, ntkmtl
        >>> trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> z = trunk(torch.ones(5, 3)).relu()
        >>> losses = {"size": heads[0](z).mean(), "kind": heads[1](z).mean()}
        >>> advice = ntkmtl.advise(losses, priorities={"size": 3})  # doctest: +ELLIPSIS
        balancer = Balancer(priorities={'size': 3})
        balancer.backward(losses)
        # Exact kernels as often as the budget allows, averaged: right for any network. (docs/...)
        # A factor in front of a loss is balanced away; a priority is not. (docs/guide.md...)
        # It replaces `sum(losses.values()).backward()`. (docs/recipes/plain-pytorch.md)
        >>> advice.explanation.clean
        True
    """
    for name, value, kinds in (
        ("loop", loop, get_args(Loop)),
        ("framework", framework, get_args(Framework)),
    ):
        if value not in kinds:
            raise ValueError(f"{name} must be one of {', '.join(kinds)}. Found {value!r}.")
    names, values = task_names(losses)
    given = list(values.values() if isinstance(values, Mapping) else values)
    balancer = Balancer(tasks=names, budget=budget, priorities=dict(priorities or {}))
    explanation = balancer._explained(losses, None, model)
    situation = Situation(
        tasks=len(explanation.tasks),
        connected=len(explanation.unconnected) < len(explanation.tasks),
        clean=explanation.clean and not explanation.opaque,
        means=all(isinstance(loss, Tensor) and not loss.ndim for loss in given if loss is not None),
        budget=budget,
        exact_price=1.0 + 0.7 * len(explanation.tasks),
        every_step=every_step,
        priorities=dict(priorities or {}),
        keep_learning_rate=keep_learning_rate,
        loop=loop,
        framework=framework,
    )
    advice = _advice(situation, explanation)
    print(advice)
    return advice


def _advice(situation: Situation, explanation: Explanation) -> Advice:
    """Return the advice that ``RULES`` give for a situation."""
    found = [rule for rule in RULES if rule.applies(situation)]
    method = next(rule for rule in found if rule.decides == "method")
    if not situation.connected:
        return Advice("", method.code, (method,), situation, explanation)
    options = [rule for rule in found if rule.decides == "option"]
    calls = [rule for rule in found if rule.decides == "call"]
    budget = "" if situation.budget == 1.1 else f"budget={situation.budget}"
    start, _, end = method.code.format(budget=budget).partition("(")
    arguments = [
        end.removesuffix(")"),
        *(r.code.format(priorities=situation.priorities) for r in options),
    ]
    code = f"{start}({', '.join(filter(None, arguments))})"
    call = calls[0].code
    return Advice(code, call, (method, *options, *calls), situation, explanation)
