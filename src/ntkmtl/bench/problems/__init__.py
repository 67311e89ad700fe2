"""Problems: what methods are trained and compared on, by name.

Listing the problems does not import torch; creating one does.

Example:
    >>> from ntkmtl.bench import problems
    >>> problems.names()[0]
    'qm9-mini'
    >>> problem = problems.create("qm9-mini", targets="standardized")
    >>> len(problem.tasks), problem.size("train")
    (11, 3000)
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.problems._loading import ProblemError, check, load_class
from ntkmtl.bench.problems._registry import PROBLEMS, ProblemSpec
from ntkmtl.errors import MissingExtraError
from ntkmtl.loading import on_first_use, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ntkmtl.bench.problems.base import (
        Metric,
        MultiTaskModel,
        Prediction,
        Problem,
        Recipe,
        Split,
    )

__all__ = [
    "Metric",
    "MultiTaskModel",
    "Prediction",
    "Problem",
    "ProblemError",
    "ProblemNotFoundError",
    "ProblemSpec",
    "Recipe",
    "Split",
    "check",
    "create",
    "find_problem",
    "known_recipe",
    "load_target",
    "names",
    "spec",
    "specs",
]

_PATHS = frozenset({"csv", "data", "split"})
"""Options that name a file or a folder: a run keeps their absolute paths."""


def names() -> tuple[str, ...]:
    """Return the names of all problems.

    Example:
        >>> "qm9-mini" in names()
        True
    """
    return tuple(PROBLEMS)


def specs() -> tuple[ProblemSpec, ...]:
    """Return name, place and one-line summary of all problems.

    Example:
        >>> specs()[0].name
        'qm9-mini'
    """
    return tuple(PROBLEMS.values())


def spec(name: str) -> ProblemSpec | None:
    """Return what is registered under a name, None for a custom problem or an unknown name.

    Args:
        name: As :func:`create` takes it.

    Example:
        >>> spec("mt10").plain
        'mtl-sac'
    """
    return PROBLEMS.get(name)


def load_target(name: str) -> Any:
    """Return the class behind a name; a custom one's code is run.

    Args:
        name: As :func:`create` takes it.

    Raises:
        ValueError: There is no problem of that name.
        ProblemError: A custom problem cannot be imported.

    Example:
        >>> load_target("qm9-mini").__name__
        'QM9Mini'
    """
    if ":" in name or name.endswith(".py"):
        return load_class(name)
    if name in PROBLEMS:
        return resolve_name(PROBLEMS[name].target)
    close = difflib.get_close_matches(name, PROBLEMS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"no problem is named {name!r}{hint} Known: {', '.join(PROBLEMS)}, "
        "and your own as module.path:ClassName or path/file.py:ClassName"
    )


def create(name: str, **options: Any) -> Problem:
    """Return a problem, its data loaded.

    Args:
        name: One of :func:`names`, or a custom one as ``module.path:ClassName`` or
            ``path/to/file.py:ClassName``, whose code is then run.
        **options: Options of that problem.

    Raises:
        ValueError: There is no problem of that name, it is not a supervised one, or an option's
            value is unknown.
        TypeError: The problem has no such option.
        ProblemError: A custom problem cannot be imported, leaves a method out, or raised an error.
        MissingExtraError: The problem needs a package that is not installed.

    Example:
        >>> create("qm9-mini", targets="raw").options["targets"]
        'raw'
        >>> create("qm9mini")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: no problem is named 'qm9mini'; did you mean 'qm9-mini'? Known: qm9-mini, ...
    """
    if name in PROBLEMS and not PROBLEMS[name].supervised:
        raise ValueError(
            f"{name} has no samples and losses to train on: its agents are trained by "
            f"`ntkmtl compare {name}`"
        )
    factory = load_target(name)
    parameters = inspect.signature(factory).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = tuple(parameter.name for parameter in parameters)
        unknown = [option for option in options if option not in accepted]
        if unknown:
            raise TypeError(
                f"{name} has no option {', '.join(map(repr, unknown))}; it takes: "
                f"{', '.join(accepted) or 'none'}"
            )
    problem = _made(name, factory, options)
    problem.created_with = {
        key: str(Path(value).expanduser().absolute())
        if isinstance(value, Path) or (key in _PATHS and isinstance(value, str))
        else value
        for key, value in options.items()
    }
    return problem


def _made(name: str, factory: Callable[..., Problem], options: Mapping[str, Any]) -> Problem:
    try:
        return factory(**options)
    except (Exception, SystemExit) as error:
        # An error of a custom problem's own code, beyond what it refuses in words. Without a place
        # in it, a type error says that an argument is missing.
        place = place_of(error)
        if (
            ":" not in name
            or isinstance(error, ValueError | OSError | MissingExtraError)
            or (isinstance(error, TypeError) and not place)
        ):
            raise
        raise ProblemError(f"{type(error).__name__}{place}: {error}") from error


def known_recipe(name: str, recipe: str | None = None) -> Recipe | None:
    """Return the recipe that a problem will have, as far as it is known before its data are read.

    Args:
        name: As :func:`create` takes it.
        recipe: Name of the recipe asked for, None for the problem's usual one.

    Returns:
        The recipe, None where the data decide or there is none of that name.

    Raises:
        ValueError: There is no problem of that name.
        ProblemError: A custom problem cannot be imported.

    Example:
        >>> known_recipe("qm9", "paper").batch_size
        60
    """
    target = load_target(name)
    by_name: dict[str, Recipe] = dict(getattr(target, "recipes", None) or {})
    if not by_name:
        usual = getattr(target, "recipe", None)
        # A custom problem may have anything there, which `check` refuses.
        return usual if isinstance(getattr(usual, "batch_size", None), int) else None
    if recipe is None:
        recipe = getattr(inspect.signature(target).parameters.get("recipe"), "default", None)
    return by_name.get(str(recipe))


class ProblemNotFoundError(ValueError):
    """A name does not lead to a problem, or the problem refuses its options."""


def find_problem(
    name: str, options: Mapping[str, Any] | None = None, *, try_out: bool = False
) -> Problem:
    """Create a problem from what a user typed, with one error for whatever is wrong with it.

    Args:
        name: What :func:`create` takes.
        options: Options given to the problem.
        try_out: Whether to put a custom problem through :func:`check`.

    Raises:
        ProblemNotFoundError: There is no such problem, it refuses the options, or it does not keep
            the protocol.

    Example:
        >>> find_problem("no.m:Toy")
        Traceback (most recent call last):
        ...
        ntkmtl.bench.problems.ProblemNotFoundError: problem no.m:Toy: No module named 'no'
    """
    try:
        problem = create(name, **dict(options or {}))
        if try_out and ":" in name:
            check(problem)
    except ProblemError as error:
        raise ProblemNotFoundError(str(error)) from error
    except (TypeError, ValueError) as error:
        known = ":" in name or name in PROBLEMS
        raise ProblemNotFoundError(f"problem {name}: {error}" if known else str(error)) from error
    return problem


__getattr__, _base_names = on_first_use(
    __name__, {".base": ("Metric", "MultiTaskModel", "Prediction", "Problem", "Recipe", "Split")}
)


def __dir__() -> list[str]:
    return sorted({*globals(), *_base_names()})
