"""Inputs that are damaged, foreign or absurd: what is said of them."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from faults import Outcome
from faults.runs import OWN_PROBLEM, numbers, same
from ntkmtl.bench.problems import _arrays, qm9_mini
from ntkmtl.bench.problems.qm9_mini import _data as molecules
from ntkmtl.bench.problems.table import Table, TableError
from ntkmtl.bench.runs import CHECKPOINT, PREVIOUS
from ntkmtl.bench.training import RunFileError, RunInterrupted, find_problem, load_run, train

__all__ = [
    "TABLES",
    "damaged_checkpoint",
    "damaged_data",
    "damaged_results",
    "foreign_version",
    "spoilt_table",
]


def _train(folder: Path, stop_after: int | None = None) -> None:
    problem = find_problem(f"{OWN_PROBLEM}:MyProblem", {})
    steps = count(1)
    train(
        problem,
        "ntkmtl-sr",
        0,
        folder,
        recipe=replace(problem.recipe, epochs=2, batch_size=64),
        method_options={"minibatches": 2},
        threads=1,
        checkpoint_seconds=0.0,
        should_stop=lambda: stop_after is not None and next(steps) == stop_after,
    )


def _spoil(content: bytes, how: str, draw: random.Random) -> bytes:
    """Return bytes that were cut, changed or emptied."""
    if how == "cut":
        return content[: draw.randrange(len(content))]
    if how == "emptied":
        return b""
    if how == "zeroed":
        place = draw.randrange(len(content))
        return content[:place] + bytes(len(content) - place)
    spoilt = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


WAYS = ("cut", "emptied", "zeroed", "flipped")


def damaged_checkpoint(times: int, work: Path, seed: int = 0) -> Outcome:
    """A latest checkpoint that is cut, zeroed or flipped: the previous one is used, with a note."""
    outcome = Outcome()
    draw = random.Random(seed)
    _train(work / "whole")
    whole = numbers(work / "whole")
    with contextlib.suppress(RunInterrupted):
        _train(work / "stopped", stop_after=9)
    harmless = 0
    for attempt in range(times):
        folder = work / f"spoilt-{attempt}"
        shutil.copytree(work / "stopped", folder)
        path = folder / CHECKPOINT
        content = path.read_bytes()
        path.write_bytes(_spoil(content, WAYS[attempt % len(WAYS)], draw))
        both = attempt % 5 == 4
        if both:
            (folder / PREVIOUS).write_bytes(b"not a checkpoint")
        outcome.tried += 1
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _train(folder)
        texts = [str(warning.message) for warning in said]
        wanted = "starts again from its beginning" if both else f"previous one, {folder / PREVIOUS}"
        if not texts:
            # Bits of the padding between two entries of the archive are nobody's.
            harmless += 1
        else:
            outcome.expect(wanted in texts[0] and str(path) in texts[0], f"{attempt}: {texts}")
        same(outcome, folder, whole, f"{folder.name}")
        shutil.rmtree(folder)
    outcome.expect(harmless <= times / 4, f"{harmless} of {times} damages were not noticed")
    outcome.notes.append(f"{harmless} hit padding and changed nothing")
    return outcome


def damaged_results(times: int, work: Path, seed: int = 0) -> Outcome:
    """Files of a finished run that are cut or changed: the same run, or an error naming the file.

    JSON carries no checksum: a digit that became another is another number, and nothing can tell.
    """
    outcome = Outcome()
    draw = random.Random(seed)
    _train(work / "whole")
    told = 0
    names = ("config.json", "result.json", "history.json", "steps.npz")
    for attempt in range(times):
        name = names[attempt % len(names)]
        path = work / "whole" / name
        content = path.read_bytes()
        path.write_bytes(_spoil(content, draw.choice(WAYS), draw))
        outcome.tried += 1
        try:
            run = load_run(work / "whole")
            _ = run.history, run.steps
        except RunFileError as error:
            told += 1
            outcome.expect(str(path) in str(error), f"names no file: {error}")
        except Exception as error:  # noqa: BLE001  (that is what is looked for)
            outcome.broken.append(f"{name}: {type(error).__name__}: {error}")
        finally:
            path.write_bytes(content)
    outcome.notes.append(f"{told} noticed; the others still hold a valid run")
    return outcome


def foreign_version(times: int, work: Path) -> Outcome:
    """A configuration that another version wrote: refused by name, nothing of it is touched."""
    outcome = Outcome()
    _train(work / "run")
    path = work / "run" / "config.json"
    content = json.loads(path.read_bytes())
    for schema in (0, 2, 99, "1", None)[:times]:
        path.write_text(json.dumps({**content, "schema": schema}))
        before = {p.name: p.read_bytes() for p in (work / "run").iterdir()}
        for act in (lambda: load_run(work / "run"), lambda: _train(work / "run")):
            outcome.tried += 1
            try:
                act()
            except RunFileError as error:
                outcome.expect(str(path) in str(error) and "schema" in str(error), str(error))
            else:
                outcome.broken.append(f"schema {schema!r} was accepted")
        after = {p.name: p.read_bytes() for p in (work / "run").iterdir()}
        outcome.expect(before == after, f"schema {schema!r}: files were changed")
    return outcome


def damaged_data(times: int, work: Path, seed: int = 0) -> Outcome:
    """Bits flipped in data files: an error that names the file, or the very same data."""
    outcome = Outcome()
    draw = random.Random(seed)
    folder = work / "prepared"
    generator = np.random.default_rng(0)
    arrays = {"inputs": generator.normal(size=(50, 8)), "labels": np.arange(50)}
    for name, array in arrays.items():
        _arrays.write_array(folder / f"{name}.npy", array)
    _arrays.write_manifest(folder, "toy 1", list(arrays), {})
    shipped = work / "molecules.npz"
    shutil.copy(molecules.DATA, shipped)
    right, _ = qm9_mini._data.read(shipped)

    def read_prepared() -> bool:
        found = _arrays.PreparedData(folder, "toy 1", "Make them again.")
        return all(np.array_equal(found[name], array) for name, array in arrays.items())

    def read_molecules() -> bool:
        found, _ = molecules.read(shipped)
        return np.array_equal(found.positions, right.positions) and np.array_equal(
            found.targets, right.targets
        )

    cases: list[tuple[Path, Callable[[], bool]]] = [
        (folder / "inputs.npy", read_prepared),
        (folder / "labels.npy", read_prepared),
        (shipped, read_molecules),
    ]
    same = 0
    for attempt in range(times):
        path, read = cases[attempt % len(cases)]
        content = path.read_bytes()
        path.write_bytes(_spoil(content, WAYS[attempt % len(WAYS)], draw))
        outcome.tried += 1
        try:
            outcome.expect(read(), f"{path.name}: other data were read without a word")
            same += 1
        except (ValueError, FileNotFoundError) as error:
            outcome.expect(str(path) in str(error), f"names no file: {error}")
        except Exception as error:  # noqa: BLE001  (that is what is looked for)
            outcome.broken.append(f"{path.name}: {type(error).__name__}: {error}")
        finally:
            path.write_bytes(content)
    outcome.notes.append(f"{same} hit bytes that mean nothing, and the data were the same")
    return outcome


# ------------------------------------------------------------------------------------------------
# Tables

ROWS = [f"{i},{i % 7}.5,{'ab'[i % 2]}" for i in range(60)]


def _table(header: str = "y,x,c", rows: list[str] = ROWS, at: int = 30, put: str = "") -> bytes:
    lines = [header, *rows]
    if put:
        lines[at] = put
    return "\n".join(lines).encode()


TABLES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "an empty file": (b"", ("empty",)),
    "a header and no rows": (b"y,x,c\n", ("no rows",)),
    "nothing but empty lines": (b"\n\n\n", ("empty lines",)),
    "a row too long": (_table(put="1,2,a,4"), ("line 31", "4 cells", "3")),
    "a row too short": (_table(put="1,2"), ("line 31", "2 cells", "3")),
    "an infinite target": (_table(put="inf,2,a"), ("'y'", "row 30")),
    "a negative infinite target": (_table(put="-Infinity,2,a"), ("'y'", "row 30")),
    "a number beyond float64": (_table(put="1e999,2,a"), ("'y'", "row 30")),
    "an infinite input": (_table(put="1,inf,a"), ("'x'", "row 30")),
    "bytes of another encoding": (_table(put="1,2,caf\xe9").replace(b"\xc3\xa9", b"\xe9"), ("31",)),
    "a table in UTF-16": (_table().decode().encode("utf-16"), ("utf-16",)),
    "a null byte": (_table(put="1,2,\x00a"), ("line 31",)),
    "ten million characters in a cell": (
        _table(put=f"1,2,{'x' * 10_000_000}"),
        ("line 31", "131,072"),
    ),
    "ten million characters in the header": (_table(header=f"y,x,{'c' * 10_000_000}"), ("line 1",)),
    "a quote that is never closed": (_table(put='1,2,"a'), ("quote",)),
    "a column twice": (_table(header="y,x,x"), ("'x'", "2 and 3")),
    "no such target": (_table(header="z,x,c"), ("'y'",)),
    "numbers for a header": (_table(header="1,2,3"), ("first line",)),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, ("not text",)),
}
"""Content of a file, and what its error must say besides the file's name."""


def spoilt_table(name: str, work: Path) -> Outcome:
    """Read a table that cannot be trained on: an error naming the file and line, row or column."""
    content, wanted = TABLES[name]
    outcome = Outcome(tried=1)
    path = work / "table.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        Table(path, "y")
    except TableError as error:
        said = str(error)
        outcome.expect(str(path) in said, f"names no file: {said}")
        outcome.expect(len(said) < 1000, f"an error of {len(said):,} characters")
        missing = [part for part in wanted if part not in said]
        outcome.expect(not missing, f"does not say {missing}: {said[:300]}")
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        outcome.broken.append(f"{type(error).__name__}: {str(error)[:300]}")
    else:
        outcome.broken.append("was accepted")
    return outcome
