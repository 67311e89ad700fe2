"""How long and how agents are trained, and the variants of Table 4, as data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from ntkmtl.bench.reinforce.environment import LONGEST_HORIZON, MT10, Goals
from ntkmtl.bench.reinforce.networks import Encoding, Heads
from ntkmtl.bench.reinforce.sac import unsuited
from ntkmtl.weighting import names, spec

__all__ = ["RECIPES", "VARIANTS", "ReinforceRecipe", "Variant", "recipe_named", "variant_named"]


_Named = TypeVar("_Named", "ReinforceRecipe", "Variant")


def _by_name(*named: _Named) -> Mapping[str, _Named]:
    return MappingProxyType({one.name: one for one in named})


@dataclass(frozen=True)
class ReinforceRecipe:
    """How long and how agents are trained.

    A vector step is one step of every task.

    Attributes:
        name: Name on the command line.
        description: One sentence for tables.
        tasks: Names of the k tasks.
        vector_steps: Length of a run.
        goals: One ``"fixed"`` goal per task, or ``"random"`` ones out of 50.
        horizon: Steps of an episode.
        scale_rewards: Divide rewards by their running deviation.
        hidden: Widths of the hidden layers of actor and critics.
        encoding: How networks are given the task, unless the variant says otherwise.
        temperature: ``"shared"``, ``"per-task"``, or ``"published"``: as the variant says.
        initial_temperature: Where temperatures start.
        batch_size: Transitions of an update, of all tasks together.
        sampling: ``"stratified"``: equally many of each task; ``"uniform"``: as from one buffer.
        capacity: Transitions kept, of all tasks together.
        random_steps: Vector steps with random actions before the first update.
        catch_up: Make one update for each of the random steps after them.
        learning_rate: Of Adam.
        gamma: Discount.
        tau: Rate of the target critics.
        every: Weights are made in each ``every``-th update.
        evaluate_every: Vector steps between evaluations.
        evaluation_episodes: Deterministic episodes per task, one per goal, always the same goals.
        bfloat16_products: Let matrix products round their factors to bfloat16 on a processor that
            multiplies those faster; sums stay float32. It changes nothing on others.
        method_options: Settings of methods by variant, instead of the variant's own.
        compile: Compile updates by ``torch.compile``, as far as :class:`MultiTaskSAC` says.
        reduced: True if it is smaller than what the literature uses.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    vector_steps: int
    goals: Goals
    horizon: int = 150
    scale_rewards: bool = False
    hidden: tuple[int, ...] = (400, 400, 400)
    encoding: Encoding = "one-hot"
    temperature: Literal["shared", "per-task", "published"] = "published"
    initial_temperature: float = 1.0
    batch_size: int = 1280
    sampling: Literal["stratified", "uniform"] = "stratified"
    capacity: int = 1_000_000
    random_steps: int = 1500
    catch_up: bool = False
    learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    every: int = 1
    evaluate_every: int = 30_000
    evaluation_episodes: int = 10
    bfloat16_products: bool = False
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    compile: bool = False
    reduced: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: A number is out of range, or numbers do not go together.
        """
        positive = ("vector_steps", "batch_size", "capacity", "every", "evaluation_episodes")
        for name in (*positive, "horizon", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.horizon > LONGEST_HORIZON:
            raise ValueError(f"horizon must be at most {LONGEST_HORIZON}, found {self.horizon}")
        if self.evaluate_every % self.horizon:
            raise ValueError(
                f"evaluate_every must be a multiple of the horizon, {self.horizon}: agents are "
                f"judged between episodes. Found {self.evaluate_every}"
            )
        if self.vector_steps % self.evaluate_every:
            raise ValueError(
                f"vector_steps must be a multiple of evaluate_every, {self.evaluate_every}, found "
                f"{self.vector_steps}"
            )
        if not 0 <= self.random_steps < self.vector_steps:
            raise ValueError(
                f"random_steps must be in 0..{self.vector_steps - 1}, found {self.random_steps}"
            )
        if self.sampling == "stratified" and self.batch_size % len(self.tasks):
            raise ValueError(
                f"batch_size must be a multiple of the {len(self.tasks)} tasks, found "
                f"{self.batch_size}"
            )
        if self.goals == "fixed" and self.evaluation_episodes > 1:
            raise ValueError(
                "a deterministic policy with one fixed goal repeats one episode: set "
                f"evaluation_episodes=1 or goals='random', found {self.evaluation_episodes}"
            )
        if self.capacity < len(self.tasks):
            raise ValueError(f"capacity must be at least one per task, found {self.capacity}")


RECIPES: Mapping[str, ReinforceRecipe] = _by_name(
    ReinforceRecipe(
        name="paper",
        description="The protocol behind Table 4, on V3 tasks with V2 rewards",
        tasks=MT10,
        vector_steps=2_010_000,
        goals="fixed",
        scale_rewards=True,
        encoding="none",
        sampling="uniform",
        catch_up=True,
        # Published: every 10,000 steps, of which only multiples of 30,000 end an episode of 150.
        evaluate_every=30_000,
        evaluation_episodes=1,
        method_options={"famo": {"gamma": 0.01}},
    ),
    ReinforceRecipe(
        name="cpu-mt10",
        description="Ten tasks, networks of 2 x 256, 300,000 vector steps",
        tasks=MT10,
        vector_steps=300_000,
        goals="random",
        hidden=(256, 256),
        temperature="per-task",
        initial_temperature=0.1,
        batch_size=320,
        every=10,
        evaluate_every=15_000,
        bfloat16_products=True,
        reduced=True,
    ),
    ReinforceRecipe(
        name="cpu-mt4",
        description="Four tasks, networks of 2 x 256, 45,000 vector steps",
        tasks=("reach", "drawer-close", "window-open", "button-press-topdown"),
        vector_steps=45_000,
        goals="fixed",
        hidden=(256, 256),
        temperature="per-task",
        initial_temperature=0.1,
        batch_size=128,
        capacity=400_000,
        learning_rate=1e-3,
        every=10,
        evaluate_every=1500,
        evaluation_episodes=1,
        bfloat16_products=True,
        reduced=True,
    ),
)
"""The recipes by name."""


@dataclass(frozen=True)
class Variant:
    """A row of Table 4: a method, and the networks that go with it.

    Attributes:
        name: Its name on the command line and in tables.
        method: Name of the weighting.
        options: Its settings.
        heads: See :class:`ntkmtl.bench.reinforce.MultiTaskSAC`.
        encoding: The same; the recipe's if None.
        temperature: What ``"published"`` means for it.
        single_task: One agent per task.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    heads: Heads = "shared"
    encoding: Encoding | None = None
    temperature: Literal["shared", "per-task"] = "shared"
    single_task: bool = False


VARIANTS: Mapping[str, Variant] = _by_name(
    Variant("stl", "ls", single_task=True),
    Variant("mtl-sac", "ls", temperature="per-task"),
    Variant("mtl-sac-te", "ls", encoding="learned", temperature="per-task"),
    Variant("mh-sac", "ls", heads="multi", temperature="per-task"),
    Variant("pcgrad", "pcgrad"),
    Variant("cagrad", "cagrad", {"c": 0.9}),
    Variant("moco", "moco"),
    Variant("nash-mtl", "nash-mtl"),
    Variant("famo", "famo"),
    Variant("fairgrad", "fairgrad", {"alpha": 2.0}),
    Variant("aligned-mtl", "aligned-mtl"),
    Variant("ntkmtl", "ntkmtl"),
    # Not in the paper: it needs a head for each task.
    Variant("ntkmtl-sr", "ntkmtl-sr", heads="multi"),
)
"""The variants of Table 4, in its order, and NTKMTL-SR."""


def recipe_named(name: str) -> ReinforceRecipe:
    """Return a recipe.

    Args:
        name: A key of ``RECIPES``.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> recipe_named("cpu-mt4").tasks
        ('reach', 'drawer-close', 'window-open', 'button-press-topdown')
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def variant_named(name: str) -> Variant:
    """Return a variant of Table 4, or one with a shared network for any other method that suits.

    Methods outside the package are named ``module.path:ClassName`` or ``path/file.py:ClassName``.

    ``"ls"``, the plain sum, is the variant ``"mtl-sac"``.

    Args:
        name: A key of ``VARIANTS``, or a method.

    Raises:
        ValueError: There is no such variant or method, or it does not suit.

    Example:
        >>> variant_named("mh-sac").heads, variant_named("imtl-g").method
        ('multi', 'imtl-g')
    """
    name = "mtl-sac" if name == "ls" else name
    if name in VARIANTS:
        return VARIANTS[name]
    if ":" in name:
        # A custom method, by the name under which every process finds it.
        name = spec(name).name
    elif name not in names():
        close = difflib.get_close_matches(name, [*VARIANTS, *names()], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"unknown method {name!r}{hint} Variants of Table 4: {', '.join(VARIANTS)}; other "
            "methods by the name that `ntkmtl methods` lists, and your own as "
            "module.path:ClassName or path/file.py:ClassName"
        )
    if why := unsuited(name):
        raise ValueError(f"{name} does not suit multi-task SAC: {why}")
    reads_features = spec(name).defaults.get("source") not in (None, "exact")
    return Variant(name, name, heads="multi" if reads_features else "shared")
