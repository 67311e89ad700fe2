"""Makes every fault of the fault table, and the table.

``python benchmarks/reliability.py`` tries all of them, which takes half an hour on one core, and
prints the table; ``--only kills`` and the like tries one kind; ``--write`` puts what was tried now
into ``docs/reliability/faults.json`` and the table into ``docs/reliability.md``. The exit status is
1 where something did not hold.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from faults import Outcome, disk, fuzzing, inputs, kills, long_run
from faults.runs import COMPARISON, MOLECULES, OWN

__all__ = ["Fault", "faults", "main", "rows", "table"]

DOCS = Path(__file__).parents[1] / "docs"
RECORD, PAGE = DOCS / "reliability" / "faults.json", DOCS / "reliability.md"
BEGIN, END = "<!-- fault table -->", "<!-- end of the fault table -->"

RIGHT = "every file reads; ends with the numbers of the undisturbed run"
TOLD = "an error that names the file"


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        kind: What ``--only`` calls it.
        name: The fault.
        made: How it is made.
        must: What must hold.
        run: Makes it in a folder of its own.
    """

    kind: str
    name: str
    made: str
    must: str
    run: Callable[[Path], Outcome]


def faults(fuzzed: int, steps: int) -> list[Fault]:
    """Return every fault.

    Args:
        fuzzed: Number of inputs that the readers are fed with.
        steps: Steps of the long run.
    """
    found = [
        Fault(
            "kills",
            f"killed, {training.name}",
            "SIGKILL at a random moment of a run, each run one to three times",
            RIGHT,
            partial(kills.kill_at_random, training, times),
        )
        for training, times in ((OWN, 25), (MOLECULES, 10), (COMPARISON, 15))
    ]
    found += [
        Fault(
            "kills",
            "killed within a write",
            "SIGKILL before the sync, before the rename or after it, in each of the first writes",
            RIGHT,
            partial(kills.kill_within_writes, OWN, 4),
        ),
        *(
            Fault(
                "stops",
                f"{name}, {jobs} job{'s' * (jobs > 1)}",
                made,
                f"exit status 130, no traceback; {RIGHT}",
                partial(kills.stop, number, 1, jobs=jobs),
            )
            for jobs in (1, 2)
            for name, number, made in (
                ("Ctrl-C", signal.SIGINT, "SIGINT to the process group of `ntkmtl compare`"),
                ("SIGTERM", signal.SIGTERM, "SIGTERM to `ntkmtl compare`"),
            )
        ),
        Fault(
            "stops",
            "a worker process dies",
            "SIGKILL to one of two workers",
            "exit status 1, the signal named, the other run complete; the same command completes "
            "it",
            partial(kills.worker_dies, 2),
        ),
        Fault(
            "stops",
            "two processes, one folder",
            "the same comparison twice at once, and the same run twice at once",
            "one gets an error, or waits and finds the run complete; the numbers are right",
            partial(kills.two_at_once, 2),
        ),
        Fault(
            "disk",
            "disk full",
            "a tmpfs of 256 KiB with random room",
            f"{TOLD}, no temporary file left; with room, {RIGHT}",
            partial(disk.full_tmpfs, 30),
        )
        if disk.mountable()
        else Fault(
            "disk",
            "disk full (no file system can be mounted here)",
            "see the next two rows",
            "",
            lambda _: Outcome(),
        ),
        Fault(
            "disk",
            "files cannot grow",
            "RLIMIT_FSIZE of random size, which gives EFBIG",
            f"{TOLD}, no temporary file left; without the limit, {RIGHT}",
            partial(disk.size_limit, 30),
        ),
        Fault(
            "disk",
            "no space at the n-th file",
            "a writer that raises ENOSPC, for each file of the run",
            f"{TOLD}, no temporary file left; with room, {RIGHT}",
            partial(disk.no_space_at_each_sync, 100),
        ),
        Fault(
            "disk",
            "read-only folder",
            "a folder of mode 555 and a user who does not own it",
            f"{TOLD}, nothing written; a finished run in one is read",
            partial(disk.read_only_folder, 4),
        ),
        Fault(
            "disk",
            "clock jumps",
            "`time.time` up to ten years back at each look, files of the year 2038",
            "no duration negative or absurd; the numbers of the undisturbed run",
            partial(disk.clock_jumps, 5),
        ),
        Fault(
            "inputs",
            "damaged checkpoint",
            "the last one cut, emptied, zeroed from a place on, or with 1 to 3 bits flipped; in "
            "every fifth case the one before it too",
            "a message with both names; the previous one is used, or the run starts again; the "
            "numbers of the undisturbed run",
            partial(inputs.damaged_checkpoint, 60),
        ),
        Fault(
            "inputs",
            "damaged results",
            "files of a finished run damaged in the same ways",
            f"{TOLD}, or a run that is well-formed",
            partial(inputs.damaged_results, 1000),
        ),
        Fault(
            "inputs",
            "damaged data",
            "prepared arrays and the molecules of qm9-mini damaged in the same ways",
            f"{TOLD}, or the very same data",
            partial(inputs.damaged_data, 600),
        ),
        Fault(
            "inputs",
            "configuration of another version",
            "another `schema`, read and trained on",
            f"{TOLD} and the version; no file is touched",
            partial(inputs.foreign_version, 5),
        ),
        Fault(
            "inputs",
            "tables that cannot be trained on",
            ", ".join(inputs.TABLES),
            f"{TOLD} and the line, row or column",
            _tables,
        ),
    ]
    by = "atheris" if fuzzing.has_atheris() else "mutations drawn at random (no atheris here)"
    found += [
        Fault(
            "fuzz",
            f"fuzzed: {reader} ({fuzzing.NAMES[reader]})",
            f"{by}, by bytes and by structure",
            "read, or the reader's own error, which names the file",
            partial(_fuzz, reader, count),
        )
        for reader, count in fuzzing.sharing(fuzzed).items()
    ]
    found.append(
        Fault(
            "long",
            "a long run",
            f"{steps:,} steps of a tiny network under ntkmtl-sr, with checkpoints",
            f"memory grows by less than {long_run.MEMORY:g} MiB and a step by less than "
            f"{100 * (long_run.SLOWER - 1):.0f} % from the second tenth to the last",
            partial(long_run.long_run, steps),
        )
    )
    return found


def _tables(work: Path) -> Outcome:
    whole = Outcome()
    for name in inputs.TABLES:
        one = inputs.spoilt_table(name, work)
        whole.tried += one.tried
        whole.broken += [f"{name}: {text}" for text in one.broken]
    return whole


def _fuzz(reader: str, count: int, work: Path) -> Outcome:
    return fuzzing.fuzz(reader, count, log=lambda _: None)


# ------------------------------------------------------------------------------------------------
# The table


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def rows(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line per fault."""
    return [
        f"| {_cell(row['name'])} | {_cell(row['made'])} | {row['tried']:,} | {_cell(row['must'])} "
        f"| {_cell(_result(row))} |"
        for row in found
    ]


def _result(row: dict[str, Any]) -> str:
    held = "held" if not row["broken"] else f"did not hold {len(row['broken'])} times"
    if not row["tried"]:
        held = "not tried"
    return ". ".join([held, *row["notes"]])


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the fault table in Markdown."""
    head = "| fault | how it is made | how often | what must hold | outcome |"
    return "\n".join([head, "| --- | --- | ---: | --- | --- |", *rows(found)])


def _write(found: Sequence[dict[str, Any]], order: Sequence[str]) -> None:
    from ntkmtl.files import write_json, write_text

    known = {}
    if RECORD.exists():
        known = {row["name"]: row for row in json.loads(RECORD.read_text("utf-8"))["faults"]}
    known |= {row["name"]: row for row in found}
    kept = [known[name] for name in order if name in known]
    write_json(RECORD, {"faults": kept})
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(PAGE, f"{before}{BEGIN}\n{table(kept)}\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the faults; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = ("kills", "stops", "disk", "inputs", "fuzz", "long")
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--fuzzed", type=int, default=200_000, help="inputs of all readers")
    parser.add_argument("--steps", type=int, default=100_000, help="of the long run")
    parser.add_argument("--write", action="store_true", help="the table into docs/reliability.md")
    arguments = parser.parse_args(argv)
    every = faults(arguments.fuzzed, arguments.steps)
    found = []
    for fault in every:
        if fault.kind not in arguments.only:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ntkmtl-faults-") as folder:
            outcome = fault.run(Path(folder) / "work")
        row = {
            "kind": fault.kind,
            "name": fault.name,
            "made": fault.made,
            "tried": outcome.tried,
            "must": fault.must,
            "broken": outcome.broken,
            "notes": outcome.notes,
            "versions": {name: metadata.version(name) for name in ("ntkmtl", "torch")},
        }
        found.append(row)
        seconds = time.monotonic() - started
        print(f"{fault.name}: {row['tried']:,}, {_result(row)} ({seconds:.0f} s)", file=sys.stderr)
        for text in outcome.broken[:5]:
            print(f"    {text}", file=sys.stderr)
        if arguments.write:
            # After each, so that a command that was stopped has not been for nothing.
            _write(found, [f.name for f in every])
    print(table(found))
    return 1 if any(row["broken"] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
