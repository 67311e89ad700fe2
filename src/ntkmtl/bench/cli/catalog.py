"""``ntkmtl methods``, ``problems`` and ``data``: what there is, and preparing data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ntkmtl.bench.cli.console import print_columns, print_json, refuse, refusing, say
from ntkmtl.bench.cli.options import Json

if TYPE_CHECKING:
    from ntkmtl.bench.problems import ProblemSpec


def methods(as_json: Json = False) -> None:
    """List the methods, with one line each."""
    from ntkmtl import weighting

    specs = weighting.specs()
    if as_json:
        print_json(
            [
                {
                    "name": spec.name,
                    "summary": spec.summary,
                    "requires": spec.requires,
                    "paper": spec.paper,
                }
                for spec in specs
            ]
        )
    else:
        print_columns([(spec.name, spec.summary) for spec in specs])


def problems(as_json: Json = False) -> None:
    """List the problems, with one line each."""
    from ntkmtl.bench import problems as registry

    found = [(spec.name, spec.summary) for spec in registry.specs()]
    if as_json:
        print_json([{"name": name, "summary": summary} for name, summary in found])
    else:
        print_columns(found)


def data(
    problem: Annotated[
        str | None, Argument(metavar="[PROBLEM]", help="The problem to prepare the data of.")
    ] = None,
    source: Annotated[
        Path | None, Option("--source", help="What was downloaded: a file or a folder.")
    ] = None,
    folder: Annotated[
        Path | None,
        Option(
            "--data",
            help="Where the prepared data go.",
            show_default="$NTKMTL_DATA/PROBLEM, or in the user's cache folder",
        ),
    ] = None,
    accept_implausible: Annotated[
        bool,
        Option(
            "--accept-implausible",
            help="Take values that look wrong, as depth in another unit, for what they are.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the data sets that the problems need and where they are, or prepare one."""
    if problem is not None:
        with refusing(ValueError):
            made = prepare_data(problem, source, folder, say, accept_implausible)
        if as_json:
            print_json({"problem": problem, "made": made})
        else:
            print(made)
        return
    for option, value in (
        ("--source", source),
        ("--data", folder),
        ("--accept-implausible", accept_implausible or None),
    ):
        if value is not None:
            refuse(f"{option} goes with a PROBLEM, whose data it is to prepare")
    with refusing():
        listed = list_data()
    if as_json:
        print_json(listed)
    else:
        print_columns([(entry["problem"], describe(entry)) for entry in listed])


def list_data() -> list[dict[str, Any]]:
    """Return, for each problem, where its data are.

    Returns:
        ``problem``, ``source`` (one phrase), ``folder`` (None where there is none) and ``bytes``.

    Example:
        >>> list_data()[0]["source"]
        'shipped with the package'
    """
    from ntkmtl.bench import problems

    return [_entry(spec) for spec in problems.specs()]


def _entry(spec: ProblemSpec) -> dict[str, Any]:
    if spec.prepare:
        from ntkmtl.bench.problems._arrays import MANIFEST, data_folder

        folder = data_folder(spec.name)
        ready = (folder / MANIFEST).is_file()
        source = "prepared" if ready else "not prepared"
    else:
        module = importlib.util.find_spec(spec.target.partition(":")[0])
        if module is None or module.origin is None:
            raise FileNotFoundError(
                f"the problem {spec.name} is listed, but its module is not installed"
            )
        folder = Path(module.origin).parent / "data"
        ready = folder.is_dir()
        source = "shipped with the package" if ready else "made on the fly"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if ready else 0
    return {
        "problem": spec.name,
        "source": source,
        "folder": str(folder) if ready else None,
        "bytes": size,
    }


def describe(entry: dict[str, Any]) -> str:
    """Return one line on where the data of a problem are."""
    if entry["folder"] is not None:
        return f"{entry['source']}: {entry['folder']} ({entry['bytes'] / 1e6:.1f} MB)"
    how = f": `ntkmtl data {entry['problem']} --source PATH`"
    return f"{entry['source']}{how if entry['source'] == 'not prepared' else ''}"


def prepare_data(
    name: str,
    source: Path | None,
    folder: Path | None,
    progress: Callable[[str], None],
    accept_implausible: bool = False,
) -> str:
    """Prepare the data of a problem, and return one line on what was made.

    Raises:
        ValueError: The problem needs no prepared data, or the source is damaged.
        FileNotFoundError: There is no such source.
    """
    from ntkmtl.bench import problems
    from ntkmtl.bench.problems._arrays import data_folder

    prepare = {spec.name: spec.prepare for spec in problems.specs() if spec.prepare}
    if name not in prepare:
        raise ValueError(
            f"there is nothing to prepare for {name!r}; there is for {', '.join(prepare)}"
        )
    made: str = resolve_name(prepare[name])(
        source, data_folder(name, folder), progress, accept_implausible
    )
    return made
