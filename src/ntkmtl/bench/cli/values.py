"""Values of options: reading them, and refusing wrong ones before anything is read or trained."""

from __future__ import annotations

import math
import os
import stat
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer import CallbackParam

from ntkmtl.bench.cli.console import refuse, refusing
from ntkmtl.files import parse_json, require_regular

if TYPE_CHECKING:
    from ntkmtl.bench.training import Comparison

__all__ = [
    "LAST_SEED",
    "check_files",
    "check_finite",
    "check_folder",
    "check_output",
    "check_positive",
    "find_modules_here",
    "method_settings",
    "names_in",
    "options_in",
    "planned",
    "refuse_others",
    "seeds_of",
]

LAST_SEED = 2**64 - 1
"""The largest seed that torch takes."""


def check_files(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse options that name something else than a regular file: reading it might never end."""
    for name in names:
        if isinstance(options.get(name), str):
            try:
                require_regular(Path(options[name]).expanduser())
            except OSError as error:
                refuse(f"{name}={options[name]} {error.strerror}")


def check_folder(path: Path | None) -> Path | None:
    """Refuse a folder that cannot be made or used, before anything is trained."""
    if path is None:
        return None
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            there = path.readlink()
            refuse(f"--out must be a folder, found {path}, a link to {there}, which is not there")
        return path
    except OSError as error:
        refuse(f"--out must be a folder, found {path}: {error.strerror or error}")
    if not stat.S_ISDIR(mode):
        refuse(f"--out must be a folder, found the file {path}")
    return path


def check_output(path: Path | None) -> None:
    """Refuse a picture or page with the file name that its numbers get."""
    if path is not None:
        from ntkmtl.files import numbers_beside

        with refusing(ValueError):
            numbers_beside(path)


def check_positive(context: typer.Context, option: CallbackParam, value: float | None) -> Any:
    """Refuse a number that is not positive and finite."""
    if value is not None and not (math.isfinite(value) and value > 0):
        refuse(f"{option.opts[0]} must be positive and finite, found {value}")
    return value


def check_finite(context: typer.Context, option: CallbackParam, value: float | None) -> Any:
    """Refuse NaN and infinity."""
    if value is not None and not math.isfinite(value):
        refuse(f"{option.opts[0]} must be finite, found {value}")
    return value


def names_in(text: str) -> list[str]:
    """Return names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def seeds_of(count: int, listed: str | None) -> list[int]:
    """Return the seeds that --seed-list names, or else 0 to ``count`` - 1."""
    if listed is None:
        return list(range(count))
    try:
        seeds = [int(number) for number in names_in(listed)]
    except ValueError:
        refuse(f"--seed-list takes whole numbers with commas between them. Found {listed!r}.")
    for seed in seeds:
        if not 0 <= seed <= LAST_SEED:
            refuse(f"--seed-list takes numbers from 0 to 2^64 - 1, found {seed}")
    if not seeds:
        refuse(f"--seed-list takes at least one seed, found {listed!r}")
    return seeds


_JSON = {"True": "true", "False": "false", "None": "null"}


def options_in(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs; a value is JSON or Python's True, False or None, else a string."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            refuse(f"an option is written KEY=VALUE. Found {pair!r}.")
        if key in found:
            refuse(f"the option {key} is given twice")
        try:
            found[key] = parse_json(_JSON.get(value, value).encode("utf-8", "replace"))
        except ValueError:
            found[key] = value
    return found


def method_settings(pairs: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Read METHOD.KEY=VALUE, method by method."""
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        # A file's name has dots as well: the last one before the value is followed by the setting.
        named, equals, value = pair.partition("=")
        method, _, key = named.rpartition(".")
        if not (method and key and equals):
            refuse(f"--set takes METHOD.KEY=VALUE. Found {pair!r}.")
        if key in found.setdefault(method, {}):
            refuse(f"--set {method}.{key} is given twice")
        found[method].update(options_in([f"{key}={value}"]))
    return found


def refuse_others(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """Refuse options that were given on the command line and have no effect here.

    Args:
        context: The command's.
        allowed: Names of the parameters that have an effect.
        why: What is said after the option's name.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in allowed:
            refuse(f"{parameter.opts[0]} {why}")


def find_modules_here(*names: str) -> None:
    """Let module.path:ClassName name a module in the current folder, as ``python -m`` does."""
    here = os.getcwd()  # noqa: PTH109  (entries of sys.path are strings)
    if here not in sys.path and any(":" in name for name in names):
        sys.path.insert(0, here)


def planned(problem: str, methods: Sequence[str], **arguments: Any) -> Comparison:
    """Return a comparison whose names and settings are checked before data are read.

    Args:
        problem: As typed.
        methods: As typed.
        **arguments: Further arguments of :class:`~ntkmtl.bench.training.Comparison`.

    Raises:
        SweepError: A method is unknown.
        ProblemNotFoundError: There is no such problem.
    """
    from ntkmtl.bench import problems
    from ntkmtl.bench.training.comparison import Comparison

    find_modules_here(problem, *methods)
    comparison = Comparison(problem, list(methods), **arguments)
    try:
        recipe = problems.known_recipe(problem, comparison.problem_options.get("recipe"))
    except ValueError as error:
        raise problems.ProblemNotFoundError(str(error)) from error
    batch_size = comparison.batch_size or (None if recipe is None else recipe.batch_size)
    _check_settings(arguments["method_options"], batch_size)
    if batch_size is not None and (comparison.minibatches or 1) > batch_size:
        refuse(
            f"--minibatches must be at most the batch size, {batch_size}, found "
            f"{comparison.minibatches}"
        )
    return comparison


GIVEN = ("last_layer", "method", "probe", "process_group", "record", "shared", "tasks", "trunk")
"""Arguments of a Balancer that are not settings: the run gives them."""


def _check_settings(settings: Mapping[str, Mapping[str, Any]], batch_size: int | None) -> None:
    """Refuse settings of methods that are wrong whatever the data are."""
    for method, chosen in settings.items():
        for key in GIVEN:
            if key in chosen:
                refuse(f"--set cannot change {key} of {method}: the run gives it")
        n = chosen.get("minibatches")
        if n is not None and (type(n) is not int or n < 1):
            refuse(f"minibatches of {method} must be a whole number from 1, found {n!r}")
        if n is not None and batch_size is not None and n > batch_size:
            refuse(
                f"minibatches of {method} must be at most the batch size, {batch_size}, found {n}"
            )
