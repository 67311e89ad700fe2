"""What a comparison is asked for, its methods and recipes by name, and its outcome."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl import weighting
from ntkmtl.bench.jobs.engine import SweepError
from ntkmtl.bench.problems._loading import wrong_type
from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.weighting import Weighting
from ntkmtl.weighting._registry import spec_of
from ntkmtl.weighting._settings import settings_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from ntkmtl.bench.compute.device import Device
    from ntkmtl.bench.problems.base import Problem, Recipe

__all__ = [
    "ALL_METHODS",
    "Comparison",
    "MethodLike",
    "SweepError",
    "changed_recipe",
    "method_names",
    "named",
    "named_all",
    "recipe_of",
    "recipes_by_method",
    "whole_seed",
]

ALL_METHODS = "all"
"""Stands for every registered method."""

MethodLike = str | Weighting
"""A name, ``module.path:ClassName`` or ``path/file.py:ClassName``, or a weighting."""


def named(method: MethodLike) -> tuple[str, dict[str, Any]]:
    """Return the name under which runs keep a method, and the settings of a weighting.

    Each run creates its own weighting from the two, in any process: the settings of a weighting
    count, its state does not.

    Args:
        method: The method.

    Returns:
        The registered name, or ``module:Class`` however the class was named; and the settings that
        are not the default.

    Raises:
        ValueError: There is no such method, or another process could not find its class.
        TypeError: It is neither a name nor a weighting, or one that cannot be made again.

    Example:
        >>> named(weighting.create("fairgrad", alpha=1.0))
        ('fairgrad', {'alpha': 1.0})
    """
    if isinstance(method, str):
        return weighting.spec(method).name, {}
    if isinstance(method, type) and issubclass(method, Weighting):
        raise TypeError(
            f"a method is a name or a weighting, found the class {method.__name__}; make one: "
            f"{method.__name__}()"
        )
    if not isinstance(method, Weighting):
        raise TypeError(f"a method is a name or a weighting, found {method!r}")
    kind = type(method)
    name = method.name or spec_of(kind).name
    try:
        same = weighting.load(name) is kind
    except ValueError as error:
        raise ValueError(f"{_unreachable(kind)} ({error})") from error
    if not same:
        raise ValueError(_unreachable(kind))
    return name, settings_of(method)


def whole_seed(seed: Any) -> int:
    """Return a seed as an int, also where it is one of NumPy's.

    Raises:
        ValueError: It is not a whole number, or out of torch's range.
    """
    try:
        if isinstance(seed, bool):
            raise TypeError
        found = operator.index(seed)
    except TypeError:
        raise ValueError(f"seed must be a whole number. Found {seed!r}.") from None
    if found < 0:
        raise ValueError(f"seed must not be negative. Found {seed}.")
    if found >= 2**64:
        raise ValueError(f"seed must be below 2^64. Found {seed}.")
    return found


def _unreachable(kind: type) -> str:
    return (
        f"{kind.__qualname__} is not to be found in its module {kind.__module__}, where other "
        "processes look for it: define it at the top level of a file"
    )


def named_all(
    methods: Sequence[MethodLike], options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the names under which runs keep methods, each once, and the options of each.

    Args:
        methods: The methods; ``"all"`` stands for every registered one but the baselines.
        options: Options by method, under a name as given or as returned.

    Raises:
        ValueError: A method is unknown, or given twice with other settings.
        TypeError: One is neither a name nor a weighting, or cannot be made again.

    Example:
        >>> named_all(["ls", weighting.create("fairgrad", alpha=1.0)], {"ls": {"every": 2}})
        (['ls', 'fairgrad'], {'ls': {'every': 2}, 'fairgrad': {'alpha': 1.0}})
    """
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        if isinstance(method, str) and method == ALL_METHODS:
            for name in weighting.names():
                if name != SINGLE_TASK:
                    found.setdefault(name, {})
            continue
        name, settings = named(method)
        if found.setdefault(name, settings) != settings:
            raise ValueError(
                f"{name} is given twice, with settings {found[name]} and {settings}: a comparison "
                "has each method once. Compare them under two --out, or derive a class of its own."
            )
    own: dict[str, dict[str, Any]] = {}
    for given, values in options.items():
        own.setdefault(weighting.spec(given).name if ":" in given else given, {}).update(values)
    for name, settings in found.items():
        if settings:
            twice = sorted(set(settings) & set(own.get(name, {})))
            if twice:
                raise ValueError(
                    f"{twice[0]} of {name} is given twice: to the weighting, and as an option"
                )
            own[name] = {**settings, **own.get(name, {})}
    return list(found), own


_CHANGES = ("epochs", "batch_size", "learning_rate", "minibatches", "training")
"""What a comparison, and each of its methods, may change of a recipe."""
_TRAINING = ("precision", "accumulate", "clip", "compile", "on_nonfinite", "lbfgs_steps")


def changed_recipe(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    minibatches: int | None = None,
    training: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe with some settings changed.

    Fewer epochs than the recipe's make it a reduced one, and the description says what was changed.

    Args:
        recipe: The recipe.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: Peak learning rate.
        minibatches: The paper's n.
        training: Changes of ``precision``, ``accumulate``, ``clip``, ``compile``, ``on_nonfinite``
            and ``lbfgs_steps``.

    Raises:
        SweepError: ``training`` names anything else, or a value is of another type.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=30, batch_size=64, learning_rate=1e-3, description="Published")
        >>> changed = changed_recipe(recipe, epochs=3)
        >>> changed.reduced, changed.description
        (True, 'Published (changed: epochs 30 to 3)')
    """
    for key in training or ():
        if key not in _TRAINING:
            raise SweepError(f"training has no {key!r}; it has {', '.join(_TRAINING)}")
    wanted = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "minibatches": minibatches,
        **(training or {}),
    }
    current = asdict(recipe)
    changes = {k: v for k, v in wanted.items() if v is not None and v != current[k]}
    if not changes:
        return recipe
    words = ", ".join(
        f"{key.replace('_', ' ')} {current[key]} to {new}" for key, new in changes.items()
    )
    described = f"{recipe.description} (changed: {words})".strip()
    made = replace(recipe, **changes, description=described)
    if wrong := wrong_type(made):
        raise SweepError(f"{wrong}.")
    return replace(made, reduced=recipe.reduced or made.epochs < recipe.epochs)


def recipe_of(asked: Comparison, problem: Problem) -> Recipe:
    """Return the recipe of a comparison: the problem's, with the changes for all methods.

    Args:
        asked: The comparison.
        problem: Its problem.

    Raises:
        SweepError: A change names an unknown field.
    """
    return changed_recipe(problem.recipe, **{name: getattr(asked, name) for name in _CHANGES})


def recipes_by_method(
    names: Sequence[str], asked: Mapping[str, Mapping[str, Any]], recipe: Recipe
) -> dict[str, Recipe]:
    """Return the recipes of the methods whose recipe is changed.

    Args:
        names: The methods compared.
        asked: Changes by method.
        recipe: The recipe of the others.

    Raises:
        SweepError: A change names a method that is not compared, or an unknown recipe field.
    """
    known = (*names, SINGLE_TASK)
    for name, changes in asked.items():
        if name not in known:
            raise SweepError(
                f"a recipe is given for {name!r}, which is not among the methods compared: "
                f"{', '.join(known)}"
            )
        for key in changes:
            if key not in _CHANGES:
                raise SweepError(
                    f"the recipe of {name} cannot change {key!r}; it can change "
                    f"{', '.join(_CHANGES)}"
                )
    return {name: changed_recipe(recipe, **changes) for name, changes in asked.items()}


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        problem: Registered name, or ``module.path:ClassName``.
        methods: Names of methods, ``module.path:ClassName`` or ``path/file.py:ClassName`` for your
            own, or weightings; ``"all"`` stands for every registered one, ``"stl"`` for the
            baselines. Once made, a comparison holds names only.
        seeds: Seeds, not negative.
        out: Folder for the runs.
        jobs: Runs at a time, each in a worker process; 1 trains in this process.
        problem_options: Options given to the problem.
        method_options: Options given to the Balancer, by method.
        method_recipes: Changes of the recipe by method, as ``learning_rate``; made after those for
            all methods. What :func:`ntkmtl.bench.training.comparison.changed_recipe` takes.
        epochs: Instead of the recipe's; fewer make the recipe a reduced one.
        batch_size: Instead of the recipe's.
        learning_rate: Instead of the recipe's.
        minibatches: Instead of the recipe's.
        single_task_baselines: Whether to train the baselines that Delta-m compares with.
        tasks: The tasks to train baselines for, all that a metric judges if None.
        checkpoint_seconds: Least time between two checkpoints of a run.
        record: What to record of the kernel of each run but the baselines; see :func:`train`.
        threads: Threads that a run computes with. If None, what the engine says: on this machine
            ``OMP_NUM_THREADS`` where it is set, otherwise one for runs side by side and all cores
            for a run alone. A run that resumes keeps the number that it began with.
        training: ``precision``, ``accumulate``, ``clip``, ``compile``, ``on_nonfinite`` and
            ``lbfgs_steps`` instead of the recipe's.
        device: Where to train; see :func:`train`.
        references: Whether to compute the problem's reference models, which are not networks.
        tracker: What logs the runs while they are trained; see :func:`train`.
        keep_model: Whether runs keep their trained networks.

    Raises:
        SweepError: A method is unknown, a seed is not a whole number, or options of the problem are
            neither JSON values nor paths.
    """

    problem: str
    methods: Sequence[MethodLike]
    seeds: Sequence[int]
    out: str | os.PathLike[str]
    jobs: int = 1
    problem_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    minibatches: int | None = None
    single_task_baselines: bool = True
    tasks: Sequence[str] | None = None
    checkpoint_seconds: float = 5.0
    record: Mapping[str, Any] | None = None
    threads: int | None = None
    method_recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    device: Device = "cpu"
    tracker: str | None = None
    keep_model: bool = True
    references: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        names, options = _named(self.methods, self.method_options)
        object.__setattr__(self, "methods", names)
        object.__setattr__(self, "method_options", options)
        recipes = {
            weighting.spec(name).name if ":" in name else name: changes
            for name, changes in self.method_recipes.items()
        }
        object.__setattr__(self, "method_recipes", recipes)
        # As the files of runs hold them.
        made_with = {
            k: str(v) if isinstance(v, Path) else v for k, v in self.problem_options.items()
        }
        object.__setattr__(self, "problem_options", made_with)
        try:
            json.dumps(made_with)
            object.__setattr__(self, "seeds", [whole_seed(seed) for seed in self.seeds])
        except ValueError as error:
            raise SweepError(str(error)) from error
        except TypeError as error:
            raise SweepError(f"problem_options must be JSON values or paths: {error}") from error

    def _check_types(self) -> None:
        """Refuse what is no name, list or dict."""
        if not isinstance(self.problem, str):
            raise SweepError(
                f"problem must be a name, found {self.problem!r:.60}; train(problem, ...) takes "
                "one that is made already"
            )
        for key in ("methods", "seeds"):
            value = getattr(self, key)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise SweepError(f"{key} must be a list, found {value!r}")
        for key in ("problem_options", "method_options", "method_recipes", "training"):
            value = getattr(self, key)
            if not isinstance(value, Mapping):
                raise SweepError(f"{key} must be a dict, found {value!r}")

    @property
    def names(self) -> list[str]:
        """The names under which runs keep the methods."""
        return [method for method in self.methods if isinstance(method, str)]


def method_names(asked: Sequence[MethodLike]) -> list[str]:
    """Return the names of methods in the order asked for, each once.

    Args:
        asked: Methods; ``"all"`` stands for every one but the single-task baselines.

    Raises:
        SweepError: A method is unknown.

    Example:
        >>> method_names(["ntkmtl-sr", "ls", "ntkmtl-sr"])
        ['ntkmtl-sr', 'ls']
    """
    return _named(asked, {})[0]


def _named(
    methods: Sequence[MethodLike], options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    try:
        found, own = named_all(methods, options)
    except (TypeError, ValueError) as error:
        raise SweepError(str(error)) from error
    if not found:
        raise SweepError(f"at least one method is needed, found {list(methods)}")
    return found, own
