"""Options that several commands take, what they mean, and refusing wrong ones at once."""

from __future__ import annotations

import functools
import inspect
import math
import os
import stat
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_type_hints

import typer
from typer import Argument, CallbackParam, Option

from ntkmtl.bench.cli.console import refuse, refusing
from ntkmtl.bench.problems import ProblemSpec, spec
from ntkmtl.files import parse_json, require_regular

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.engine import Engine

LAST_SEED = 2**64 - 1
"""The largest seed that torch takes."""

# ------------------------------------------------------------------------------------------------
# Refusing values before anything is read or trained


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


def _checked(fits: Callable[[float], bool], what: str) -> Any:
    """Return a callback that refuses numbers that do not fit."""

    def check(option: CallbackParam, value: float | None) -> float | None:
        if value is not None and not fits(value):
            refuse(f"{option.opts[0]} must be {what}, found {value}")
        return value

    return check


check_finite = _checked(math.isfinite, "finite")
check_positive = _checked(lambda value: math.isfinite(value) and value > 0, "positive and finite")


def _check_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    from ntkmtl.bench.compute.environment import check_threads

    with refusing(ValueError):
        return check_threads(threads)


def check_seeds(context: typer.Context, value: Any) -> Any:
    """Refuse --seeds beside --seed-list, of which one would not count."""
    if all(_is_given(context, name) for name in ("seeds", "seed_list")):
        refuse("give the seeds by --seeds or by --seed-list, not by both")
    return value


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_files(options: Mapping[str, Any]) -> None:
    """Refuse options that name something else than a regular file: reading it might never end."""
    for name in ("csv", "split"):
        if isinstance(options.get(name), str):
            try:
                require_regular(Path(options[name]).expanduser())
            except OSError as error:
                refuse(f"{name}={options[name]} {error.strerror}")


def refuse_torchrun(what: str) -> None:
    """Refuse what starts processes of its own where several were launched together."""
    from ntkmtl.bench.compute import processes

    if processes.launched() > 1:
        refuse(f"{what} starts its own processes: call it without torchrun")


def refuse_others(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """Refuse options that were given on the command line and have no effect here.

    Args:
        context: The command's.
        allowed: Names of the parameters that have an effect.
        why: What is said after the option's name.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        if _is_given(context, name) and name not in allowed:
            refuse(f"{parameter.opts[0]} {why}")


# ------------------------------------------------------------------------------------------------
# Reading values


def names_in(text: str) -> list[str]:
    """Return names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def methods_of(problem: str, named: str | None) -> list[str]:
    """Return the methods that are named, or else those that a problem is compared with."""
    if named is not None:
        return names_in(named)
    return list((spec(problem) or ProblemSpec(problem, "", "")).methods)


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


def options_in(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE pairs; a value is JSON or Python's True, False or None, else a string."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
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


def _null_words(pairs: Sequence[str] | None) -> dict[str, str]:
    """Return strings of a table that stand for a missing cell, or never do, and are JSON's null."""
    split = (pair.partition("=") for pair in pairs or ())
    return {
        key: text
        for key, _, text in split
        if key in ("missing", "not_missing") and text in ("null", "None")
    }


def method_settings(pairs: Sequence[str] | None) -> Mapping[str, Mapping[str, Any]]:
    """Read METHOD.KEY=VALUE, method by method."""
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs or ():
        # A file's name has dots as well: the last one before the value is followed by the setting.
        named, equals, value = pair.partition("=")
        method, _, key = named.rpartition(".")
        if not (method and key and equals):
            refuse(f"--set takes METHOD.KEY=VALUE. Found {pair!r}.")
        if key in found.setdefault(method, {}):
            refuse(f"--set {method}.{key} is given twice")
        found[method].update(options_in([f"{key}={value}"]))
    return found


def find_modules_here(*names: str) -> None:
    """Let module.path:ClassName name a module in the current folder, as ``python -m`` does."""
    here = os.getcwd()  # noqa: PTH109  (entries of sys.path are strings)
    if here not in sys.path and any(":" in name for name in names):
        sys.path.insert(0, here)


# ------------------------------------------------------------------------------------------------
# Options


Json = Annotated[bool, Option("--json", help="Print JSON.")]
ProblemName = Annotated[
    str,
    Argument(
        metavar="PROBLEM",
        help="A name that `ntkmtl problems` lists, or your own as module.path:ClassName or "
        "path/file.py:ClassName.",
    ),
]
Methods = Annotated[
    str | None,
    Option(
        "--methods",
        help="Names that `ntkmtl methods` lists, with commas between them, or all; your own as "
        "module.path:ClassName or path/file.py:ClassName.",
        show_default="ls,ntkmtl,ntkmtl-sr, or those that fit the problem",
    ),
]
Out = Annotated[
    Path, Option("--out", help="Folder for the runs.", file_okay=False, callback=check_folder)
]
Directory = Annotated[
    Path, Argument(metavar="DIR", help="The folder that `ntkmtl compare --out` named.")
]
Seeds = Annotated[int, Option("--seeds", min=1, callback=check_seeds, help="Use seeds 0 to N - 1.")]
SeedList = Annotated[
    str | None,
    Option("--seed-list", callback=check_seeds, help="Seeds with commas between them."),
]
Jobs = Annotated[
    int | None, Option("--jobs", min=1, help="Runs at a time.", show_default="one per core")
]
Threads = Annotated[
    int | None,
    Option(
        "--threads",
        min=1,
        callback=_check_threads,
        help="Threads of a run.",
        show_default="OMP_NUM_THREADS, or else 1 if runs are trained side by side, or all cores",
    ),
]
Epochs = Annotated[int | None, Option(min=1, help="Instead of the recipe's.")]
BatchSize = Annotated[int | None, Option(min=1, help="Instead of the recipe's.")]
LearningRate = Annotated[
    float | None,
    Option("--lr", help="Peak learning rate instead of the recipe's.", callback=check_positive),
]
MethodSettings = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="METHOD.KEY=VALUE",
        help="Setting of a method, as ntkmtl-sr.minibatches=8; may be repeated.",
    ),
]
ProblemOption = Annotated[
    list[str] | None, Option(metavar="KEY=VALUE", help="Option of the problem; may be repeated.")
]
Device = Annotated[
    str, Option("--device", metavar="auto|cpu|cuda", help="Where to train; auto takes a GPU.")
]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace runs that were made with other settings.")
]
Seed = Annotated[int, Option("--seed", min=0, max=LAST_SEED)]


class EngineName(str, Enum):
    """Where the runs are trained."""

    local = "local"
    ray = "ray"


# ------------------------------------------------------------------------------------------------
# Groups: options that go together, as the fields of a dataclass


def option(help: str, *flags: str, default: Any = None, **more: Any) -> Any:
    """Return a field of a group.

    Args:
        help: What it is for.
        *flags: As ``"--data"``, where it is not the field's name.
        default: Its default.
        **more: Further arguments of :func:`typer.Option`.
    """
    return field(default=default, metadata={"option": Option(*flags, help=help, **more)})


@dataclass(frozen=True)
class RecipeOptions:
    """Changes of the problem's recipe."""

    epochs: Epochs = None
    batch_size: BatchSize = None
    lr: LearningRate = None
    minibatches: int | None = option("The paper's n, for ntkmtl-sr and its like.", min=1)

    def changes(self) -> dict[str, Any]:
        """Return them as arguments of a comparison."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.lr,
            "minibatches": self.minibatches,
        }


@dataclass(frozen=True)
class DataOptions:
    """How a problem is created."""

    problem_option: ProblemOption = None
    recipe: str | None = option("For problems with several recipes: paper, small.", metavar="NAME")
    data_dir: str | None = option(
        "Prepared data, as `ntkmtl data` made them.", "--data", metavar="DIR"
    )
    csv: str | None = option("For table: a CSV, Parquet or ARFF file.", metavar="FILE")
    targets: str | None = option("For table: the columns to predict.", metavar="A,B,...")
    target_column: list[str] | None = option(
        "For table: one column to predict, whatever its name; may be repeated.",
        "--target",
        metavar="COLUMN",
    )
    types: str | None = option(
        "For table: regression or classification for targets; number, category, date, "
        "date:%d.%m.%Y, text, id or ignore for other columns.",
        metavar="A=TYPE,...",
        show_default="as found",
    )
    split_column: str | None = option(
        "For table: the column that says train, val or test.",
        metavar="COLUMN",
        show_default="split at random",
    )
    group: str | None = option(
        "For table: rows of one value of it stay on one side of the split.", metavar="COLUMN"
    )
    time: str | None = option(
        "For table: rows are split in its order, the latest are for testing.", metavar="COLUMN"
    )

    def options(self) -> dict[str, Any]:
        """Return the problem's options: KEY=VALUE pairs, and those that have flags."""
        if self.target_column and self.targets:
            refuse("give the columns to predict by --targets or by --target, not by both")
        named = {
            "recipe": self.recipe,
            "data": self.data_dir,
            "csv": self.csv,
            "targets": self.target_column or self.targets,
            "types": self.types,
            "split_column": self.split_column,
            "group": self.group,
            "time": self.time,
        }
        given = {key: value for key, value in named.items() if value is not None}
        options = options_in(self.problem_option)
        if twice := next((key for key in given if key in options), None):
            refuse(f"{twice} is given twice: by its own option and by --problem-option {twice}=...")
        options |= given
        if "csv" in options:
            options |= _null_words(self.problem_option)
        _check_files(options)
        return options


@dataclass(frozen=True)
class TrainingOptions:
    """Changes of how training steps are made."""

    precision: str | None = option(
        "What forward passes compute in.", metavar="fp32|bf16|fp16", show_default="the recipe's"
    )
    accumulate: int | None = option(
        "Pass the samples of a step through the network in M parts.",
        metavar="M",
        min=1,
        show_default="the recipe's",
    )
    clip: float | None = option(
        "Bring the gradient's norm down to this; 0 for no clipping.",
        metavar="NORM",
        min=0.0,
        callback=check_finite,
        show_default="the recipe's",
    )
    compile: bool | None = option(
        "Compile the trunk and each head by torch.compile.", show_default="the recipe's"
    )
    on_nonfinite: str | None = option(
        "At a NaN or an infinity, end the run, or leave the step out and count it.",
        metavar="stop|skip",
        show_default="the recipe's",
    )
    lbfgs_steps: int | None = option(
        "After the epochs, N steps of L-BFGS over all training samples at once.",
        metavar="N",
        min=0,
        show_default="the recipe's",
    )

    def changes(self) -> dict[str, Any]:
        """Return the changes of the recipe."""
        asked = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in asked.items() if value is not None}


@dataclass(frozen=True)
class WatchOptions:
    """What runs keep besides their results."""

    record: int | None = option(
        "Record the kernel every N steps, for `ntkmtl analyze`.",
        metavar="N",
        min=1,
        show_default="no record",
    )
    tracker: str | None = option(
        "Log while it trains: tensorboard, wandb, mlflow or trackio.",
        metavar="NAME",
        show_default="none",
    )
    model: bool = option("Keep the trained networks, for `ntkmtl predict`.", default=True)

    def arguments(self) -> dict[str, Any]:
        """Return them as arguments of a comparison."""
        record = None if self.record is None else {"every": self.record}
        return {"record": record, "tracker": self.tracker, "keep_model": self.model}


@dataclass(frozen=True)
class RowOptions:
    """Rows of the table besides those of the methods."""

    stl: bool = option(
        "Train the baselines that Delta-m needs. Methods that read scores during "
        "training (pivrg) train theirs in any case.",
        default=True,
    )
    reference: bool = option("For table: compute the rows of mean, ridge and forest.", default=True)

    def arguments(self) -> dict[str, bool]:
        """Return them as arguments of a comparison."""
        return {"single_task_baselines": self.stl, "references": self.reference}


@dataclass(frozen=True)
class EngineOptions:
    """Where the runs are trained."""

    engine: EngineName = option(
        "What trains the runs: processes here, or Ray tasks.", default=EngineName.local
    )
    ray_address: str | None = option(
        "With --engine ray: the head of a cluster to join, or auto.",
        metavar="HOST:PORT",
        show_default="a local Ray on this machine",
    )
    ray_cpus: int | None = option(
        "With --engine ray: processors of a run, and threads unless --threads is given.",
        min=1,
        show_default="1",
    )
    ray_gpus: float | None = option(
        "With --engine ray: GPUs of a run; 0.5 lets two share one.",
        min=0,
        callback=check_finite,
        show_default="0",
    )

    def made(self, jobs: int | None) -> Engine | None:
        """Return the engine that was asked for, None for processes on this machine."""
        if self.engine is EngineName.local:
            for name in ("address", "cpus", "gpus"):
                if getattr(self, f"ray_{name}") is not None:
                    refuse(f"--ray-{name} goes with --engine ray")
            return None
        from ntkmtl.bench.jobs.ray_engine import RayEngine

        refuse_torchrun("--engine ray")
        return RayEngine(self.ray_address, self.ray_cpus or 1, self.ray_gpus or 0.0, jobs)


_Command = TypeVar("_Command", bound="Callable[..., None]")


def grouped(command: _Command) -> _Command:
    """Let a command take groups of options.

    Args:
        command: A function for Typer. A parameter that is annotated with a dataclass stands for its
            fields, which are options with defaults, made by :func:`option` or annotated as Typer
            wants it.

    Returns:
        The command with one parameter per option, as Typer reads it.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if not is_dataclass(hints[name]):
            options.append(parameter.replace(annotation=hints[name]))
            continue
        group = groups[name] = cast("type[Any]", hints[name])
        own = get_type_hints(group, include_extras=True)
        for one in fields(group):
            asked = own[one.name]
            if "option" in one.metadata:
                asked = cast("Any", Annotated)[asked, one.metadata["option"]]
            kind = inspect.Parameter.KEYWORD_ONLY
            options.append(inspect.Parameter(one.name, kind, default=one.default, annotation=asked))

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        made = {
            name: group(**{one.name: given.pop(one.name) for one in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    flat.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    flat.__annotations__ = {one.name: one.annotation for one in options}
    return cast("_Command", flat)
