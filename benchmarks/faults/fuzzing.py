"""Readers of files, fed with whatever comes: they answer with an object or with their own error.

``python -m faults.fuzzing READER --inputs N`` runs one reader under atheris, which looks for inputs
that reach new lines of the readers, or, where atheris is not installed, under mutations drawn here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from faults import Outcome

__all__ = ["READERS", "fuzz", "has_atheris", "mutated", "read", "seeds", "sharing"]

NAMES = {
    "configuration": "config.json",
    "result": "result.json",
    "history": "history.json",
    "steps": "steps.npz",
    "record": "record.json",
    "study": "study.json",
    "checkpoint": "checkpoint.pt",
    "CSV": "table.csv",
    "ARFF": "table.arff",
    "Parquet": "table.parquet",
}
"""What is read, by the name of its reader."""

READERS = tuple(NAMES)

SHARES = {"checkpoint": 0.05, "CSV": 0.2, "ARFF": 0.15, "Parquet": 0.1}
"""Share of all inputs that a reader gets; the others, which are faster, share what is left."""


def sharing(inputs: int) -> dict[str, int]:
    """Return how many of so many inputs each reader gets, at least 1."""
    rest = (1 - sum(SHARES.values())) / (len(READERS) - len(SHARES))
    return {name: max(1, round(inputs * SHARES.get(name, rest) + 0.5)) for name in READERS}


def has_atheris() -> bool:
    """Return whether atheris is installed."""
    return find_spec("atheris") is not None


# ------------------------------------------------------------------------------------------------
# Readers

_HERE: dict[str, Path] = {}


def _folder() -> Path:
    """Return a folder with a whole run in it, of which one file is replaced by each input."""
    if "folder" not in _HERE:
        begin(Path(tempfile.mkdtemp(prefix="ntkmtl-fuzz-")))
    return _HERE["folder"]


def begin(folder: Path) -> None:
    """Make a whole run in a folder, for the readers to read with one of its files replaced."""
    from faults.inputs import _train

    _train(folder / "whole")
    shutil.copytree(folder / "whole", folder / "run")
    _HERE["folder"] = folder


def read(reader: str, content: bytes) -> str:
    """Let a reader read a file.

    Args:
        reader: One of :data:`READERS`.
        content: The file's content.

    Returns:
        What the reader's own error said, ``""`` where it took the file.

    Raises:
        Exception: It raised something else, which is what is looked for, or its error is
            unfit: it does not name the file, or goes on for more than 2,000 characters.
    """
    from ntkmtl.analysis import Recorder, RecordFileError
    from ntkmtl.bench.problems.table import Table, TableError
    from ntkmtl.bench.runs import RunFileError, load_run
    from ntkmtl.bench.runs.folder import CheckpointError, read_checkpoint
    from ntkmtl.bench.search.records import read_study

    folder = _folder()
    run = folder / "run"
    path = run / NAMES[reader]
    path.write_bytes(content)
    own = (RunFileError, RecordFileError, CheckpointError, TableError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if reader in ("configuration", "result"):
                load_run(run)
            elif reader == "history":
                _ = load_run(run).history
            elif reader == "steps":
                _ = load_run(run).steps
            elif reader == "record":
                Recorder.load(path)
            elif reader == "study":
                read_study(run)
            elif reader == "checkpoint":
                read_checkpoint(path)
            else:
                Table(path, "y").notice()
    except own as error:
        said = str(error)
        if path.name not in said and NAMES["result"] not in said:
            raise AssertionError(f"the error names no file: {said[:300]}") from error
        if len(said) > 2000:
            raise AssertionError(f"an error of {len(said):,} characters") from error
        return said
    finally:
        whole = folder / "whole" / path.name
        if whole.exists() and reader in ("configuration", "result"):
            shutil.copyfile(whole, path)
    return ""


def seeds(reader: str) -> list[bytes]:
    """Return whole files for a reader, to begin with."""
    folder = _folder()
    name = NAMES[reader]
    rows = [f"{i * i % 41}.5,{i % 7},{'ab'[i % 2]}" for i in range(40)]
    table = "\n".join(["y,x,c", *rows])
    if reader == "CSV":
        dated = "\n".join(
            ["y;x;d", *(f"{i * i % 41};{i % 5},5;2020-01-{i % 28 + 1:02d}" for i in range(40))]
        )
        return [table.encode(), dated.encode(), b'y,x\n"1","a ""b"""\n' * 3]
    if reader == "ARFF":
        head = "@relation r\n@attribute y numeric\n@attribute x real\n@attribute c {a,b}\n@data\n"
        return [(head + "\n".join(rows)).encode()]
    if reader == "Parquet":
        import pandas as pd

        out = io.BytesIO()
        pd.read_csv(io.StringIO(table)).to_parquet(out)
        return [out.getvalue()]
    if reader == "checkpoint":
        import torch

        out = io.BytesIO()
        torch.save({"step": 3, "model": {"w": torch.zeros(2, 3)}, "names": ["a", None]}, out)
        return [out.getvalue()]
    if reader == "record":
        pairs, numbers = [[1.0, 2.0], [0.5, None]], [1.0, None]
        vectors = ("losses", "weights", "max_eigenvalues", "effective_ranks")
        scalars = ("condition", "condition_weighted", "rank", "rank_weighted")
        columns: dict[str, Any] = {
            **dict.fromkeys((*vectors, "participation_ratios"), pairs),
            **dict.fromkeys((*scalars, "kernel_minibatches"), numbers),
            "affinity": [[[1.0, 0.1], [0.1, 1.0]]] * 2,
        }
        record: dict[str, Any] = {
            "schema": 1,
            "every": 5,
            "source": "exact",
            "minibatches": 2,
            "pooling": None,
        }
        return [json.dumps({**record, "tasks": ["a", "b"], "step": [0, 5], **columns}).encode()]
    if reader == "study":
        study: dict[str, Any] = {
            "schema": 1,
            "problem": "p",
            "problem_class": "m:C",
            "problem_options": {},
            "method": "fixed",
            "method_options": {},
            "seed": 0,
            "recipe": {"epochs": 2},
            "sampler": "tpe",
            "objective": {"metric": "delta_m", "split": "val"},
            "parameters": [{"name": "a", "low": 0.1, "high": 10.0, "start": 1.0, "log": True}],
        }
        return [json.dumps(study).encode()]
    return [(folder / "whole" / name).read_bytes()]


# ------------------------------------------------------------------------------------------------
# Mutations

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**63, 10**400, 1e308, -0.0, 0.5, "", "a", "\ud800", "\x00"),
    *([], {}, [[]], [None], {"": None}, "x" * 5000, [1.0] * 50, [[1.0, 2.0]], "NaN", {"schema": 2}),
)


def _mutated_json(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one of its parts changed, dropped, doubled or renamed."""
    if draw.random() < 0.25 or not value or not isinstance(value, dict | list):
        return draw.choice(_ODD)
    if isinstance(value, dict):
        key = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.25:
            return {**{k: v for k, v in value.items() if k != key}, str(draw.choice(_ODD)): 1}
        return {**value, key: _mutated_json(value[key], draw)}
    place = draw.randrange(len(value))
    if draw.random() < 0.2:
        return value[:place] + value[place + 1 :]
    if draw.random() < 0.2:
        return [*value[:place], value[place], *value[place:]]
    return [*value[:place], _mutated_json(value[place], draw), *value[place + 1 :]]


_CELLS = (
    *("", "?", "NA", "nan", "inf", "-inf", "1e999", "1e308", "-1e308", "1,5", '"', '""', "'", "\\"),
    *("\x00", "\r", "\n", "\t", ";", "\ufeff", "é", "1" * 400, "2020-01-01", "9999-99-99", "true"),
    *("{a,b}", "@data", "@attribute", "%", "\u202e", "0x10", "1_000", "١٢", "--5", "5e-324"),
)


def _mutated_table(content: bytes, draw: random.Random) -> bytes:
    """Return a table with cells, rows or separators changed."""
    lines = content.decode("utf-8", "replace").split("\n")
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(lines))
        cells = lines[place].split(",")
        what = draw.random()
        if what < 0.6:
            cells[draw.randrange(len(cells))] = draw.choice(_CELLS)
            lines[place] = ",".join(cells)
        elif what < 0.7:
            lines[place] = ",".join([*cells, draw.choice(_CELLS)])
        elif what < 0.8:
            lines[place] = lines[draw.randrange(len(lines))]
        elif what < 0.9:
            column = draw.randrange(3)
            cell = draw.choice(_CELLS)
            lines[1:] = [
                ",".join(c if i != column else cell for i, c in enumerate(line.split(",")))
                for line in lines[1:]
            ]
        else:
            lines[place] = draw.choice(_CELLS)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(spoilt) + 1)
        what = draw.random()
        if what < 0.4 and spoilt:
            spoilt[place % len(spoilt)] = draw.randrange(256)
        elif what < 0.6:
            spoilt[place:place] = draw.randbytes(draw.randint(1, 8))
        elif what < 0.8:
            del spoilt[place : place + draw.randint(1, 64)]
        elif what < 0.9:
            spoilt[place:place] = spoilt[place : place + draw.randint(1, 64)]
        else:
            del spoilt[place:]
    return bytes(spoilt)


def mutated(reader: str, content: bytes, draw: random.Random) -> bytes:
    """Return another content: by the structure of what the reader reads, by bytes, or at random."""
    kind = draw.random()
    if kind < 0.05:
        return draw.randbytes(draw.randint(0, 300))
    if kind < 0.4:
        return _mutated_bytes(content, draw)
    if NAMES[reader].endswith(".json"):
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return _mutated_bytes(content, draw)
        for _ in range(draw.randint(1, 3)):
            value = _mutated_json(value, draw)
        return json.dumps(value).encode("utf-8", "surrogatepass")
    if reader in ("CSV", "ARFF"):
        return _mutated_table(content, draw)
    return _mutated_bytes(content, draw)


# ------------------------------------------------------------------------------------------------
# Driving


def _drive(reader: str, inputs: int, seed: int) -> None:
    """Feed a reader in this process; what is not its own error ends the process with status 77."""
    if has_atheris():
        _drive_atheris(reader, inputs, seed)
        return
    draw = random.Random(seed)
    starts = seeds(reader)
    for done in range(inputs):
        content = mutated(reader, draw.choice(starts), draw)
        try:
            read(reader, content)
        except Exception as error:  # noqa: BLE001  (that is what is looked for)
            print(f"after {done} inputs {content[:400]!r}", file=sys.stderr)
            print(f"FOUND {type(error).__name__}: {str(error)[:500]}", file=sys.stderr)
            sys.exit(77)
    print(f"Done {inputs} runs", file=sys.stderr)


def _drive_atheris(reader: str, inputs: int, seed: int) -> None:
    import atheris

    # Only what is fuzzed is looked into: instrumenting torch would take minutes.
    with atheris.instrument_imports(include=["ntkmtl"]):
        import ntkmtl.analysis
        import ntkmtl.bench.problems.table
        import ntkmtl.bench.runs
        import ntkmtl.bench.runs.folder
        import ntkmtl.bench.search.records  # noqa: F401

    starts = seeds(reader)
    corpus = _folder() / "corpus"
    corpus.mkdir()
    for number, content in enumerate(starts):
        (corpus / str(number)).write_bytes(content)

    def one(content: bytes) -> None:
        read(reader, content)

    def mutate(content: bytes, size: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(content, size))
        return mutated(reader, content, draw)[:size]

    arguments = [
        *(sys.argv[0], str(corpus), f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=20000"),
        *("-timeout=60", "-rss_limit_mb=4096", f"-artifact_prefix={_folder()}/"),
    ]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(reader: str, inputs: int, seed: int = 0, log: Callable[[str], None] = print) -> Outcome:
    """Feed a reader in a process of its own, so that a crash of the process is seen as well."""
    outcome = Outcome()
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    # libFuzzer ends its process without clean-up, so the folder is made and removed here.
    with tempfile.TemporaryDirectory(prefix="ntkmtl-fuzz-", dir=place) as folder:
        found = subprocess.run(
            [
                *(sys.executable, "-m", "faults.fuzzing", reader, "--folder", folder),
                *("--inputs", str(inputs), "--seed", str(seed)),
            ],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    done = re.findall(r"Done (\d+) runs", found.stderr)
    outcome.tried = int(done[-1]) if done else 0
    if found.returncode != 0 or not done:
        outcome.broken.append(f"{reader}: status {found.returncode}: {found.stderr[-3000:]}")
    log(f"{reader}: {outcome.tried:,} inputs, {len(outcome.broken)} broken")
    return outcome


def main() -> None:
    """Run one reader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="empty, to work in")
    given = parser.parse_args()
    if given.folder is not None:
        begin(given.folder)
    _drive(given.reader, given.inputs, given.seed)


if __name__ == "__main__":
    main()
