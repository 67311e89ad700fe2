"""Seconds and peak memory of one training step, ntkmtl beside its peers.

    python benchmarks/peers.py --write docs/performance

One process per contender, which take turns a step at a time; every turn is compared with the turns
of plain training just before and just after it. What is measured is written after each network, so
a run that was stopped goes on where it was when started again with the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sidebyside.contenders import PLAIN, Case, Contender, contenders, make_step
from sidebyside.summary import summarize
from sidebyside.tables import BEGIN, END, fill_page, markdown
from sidebyside.turns import Entrant, take_turns
from sidebyside.workloads import WORKLOADS

from ntkmtl.files import write_json, write_text

SCHEMA = 1
TASKS = (2, 3, 11, 40)
USUAL = (
    ("celeba", 40),
    ("qm9", 11),
    ("mtan", 3),
    ("transformer", 2),
    ("transformer", 11),
    ("celeba", 2),
)
"""Networks and numbers of tasks unless ``--full`` or ``--tasks`` says otherwise."""


def measure(
    case: Case,
    entries: Sequence[Contender],
    *,
    rounds: int,
    threads: int,
    together: int,
    turn_seconds: float,
    slow_seconds: float = 2.0,
    slow_rounds: int = 2,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Any]:
    """Time one network, contenders in heats, plain training in each.

    Args:
        case: What is trained.
        entries: Who is timed besides plain training.
        rounds: Turns that each takes.
        threads: Threads of each process.
        together: Contenders whose processes exist at the same time.
        turn_seconds: How long a turn lasts at least.
        slow_seconds: A contender with longer steps, which are not about plain training's, takes
            part in ``slow_rounds`` rounds only.
        slow_rounds: See ``slow_seconds``.
        progress: Called with the share of the work that is done.

    Returns:
        One entry of ``cases`` in the JSON file.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    heats = [entries[i : i + together] for i in range(0, len(entries), together)]
    rows: list[dict[str, Any]] = []
    bases: list[Entrant] = []
    plain: list[tuple[int, float]] = []
    for number, heat in enumerate(heats):

        def part(done: float, number: int = number) -> None:
            progress((number + done) / len(heats))

        base = Entrant(make_step, (PLAIN, case))
        others = [Entrant(make_step, (entry, case)) for entry in heat]
        take_turns(
            base,
            others,
            rounds=rounds,
            threads=threads,
            turn_seconds=turn_seconds,
            slow_seconds=slow_seconds,
            slow_rounds=slow_rounds,
            cuda=case.device != "cpu",
            progress=part,
        )
        rows += [row_of(entry, one, base) for entry, one in zip(heat, others, strict=True)]
        bases.append(base)
        offset = plain[-1][0] + 1 if plain else 0
        plain += [(offset + place, seconds) for place, seconds in base.turns]
    joined = bases[0]
    joined.turns, joined.steps = plain, sum(base.steps for base in bases)
    kind = WORKLOADS[case.network]
    return {
        "network": case.network,
        "title": kind.title,
        "size": kind.size,
        "tasks": case.tasks,
        "batch": case.batch,
        "load": load,
        "rows": [row_of(PLAIN, joined, joined), *rows],
    }


def row_of(contender: Contender, entrant: Entrant, base: Entrant) -> dict[str, Any]:
    """Return one contender's numbers, with its ratios to plain training."""
    row: dict[str, Any] = {
        "label": contender.label,
        "group": contender.group,
        "method": contender.method,
        "minibatches": contender.minibatches,
        "error": entrant.error,
    }
    if entrant.error:
        return row
    own = summarize(entrant.turns, base.turns)
    if entrant is base:  # against itself: its own spread
        own["ratio"] = {"median": 1.0, "lower": 1.0, "upper": 1.0}
        own["paired"] = []
        own["extra"] = 0.0
    grown = base.peak_bytes - base.start_bytes
    return {
        **row,
        **own,
        "steps": entrant.steps,
        "start_bytes": entrant.start_bytes,
        "peak_bytes": entrant.peak_bytes,
        "memory_ratio": entrant.peak_bytes / base.peak_bytes,
        # Of what training itself takes, without the interpreter and its libraries.
        "growth_ratio": (entrant.peak_bytes - entrant.start_bytes) / grown if grown > 0 else 1.0,
    }


def facts(device: str, threads: int) -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    import torch
    import torchjd

    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        models = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "threads": threads,
        "torch": torch.__version__,
        "torchjd": getattr(torchjd, "__version__", None) or _version("torchjd"),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Seconds and peak memory of one step, ntkmtl beside its peers."
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(WORKLOADS), help="all of them by default")
    add("--tasks", nargs="+", type=int, help="numbers of tasks k, for each network")
    add("--full", action="store_true", help=f"k in {', '.join(map(str, TASKS))} for each network")
    add("--minibatches", nargs="+", type=int, default=[1, 2, 4, 6, 16], help="the paper's n")
    add("--batch", type=int, help="samples per step; the network's own by default")
    add("--scale", type=float, default=1.0, help="shrink the networks, to try the harness out")
    add("--rounds", type=int, default=11, help="turns that each contender takes")
    add("--turn", type=float, default=0.02, help="seconds that a turn lasts at least")
    add("--together", type=int, default=8, help="contenders in memory at the same time")
    add(
        "--slow",
        type=float,
        default=2.0,
        help="contenders with longer steps (and not about plain training's) take two turns only",
    )
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--device", default="cpu", help="cpu or cuda")
    add("--only", nargs="*", help="labels that contain one of these words")
    add("--published", metavar="PATH", help="a checkout of the published NTKMTL code")
    add("--libmtl", metavar="PATH", help="a checkout of LibMTL")
    add("--json", metavar="FILE", help="where the numbers go; WRITE/measured.json by default")
    add("--fresh", action="store_true", help="measure again what the file already holds")
    add(
        "--write",
        metavar="FOLDER",
        help="write numbers and figures to FOLDER and the tables into FOLDER.md, between "
        f"{BEGIN} and {END}",
    )
    add("--redraw", action="store_true", help="measure nothing; write from the numbers there are")
    return parser


def _command(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return the command, without anybody's paths and what does not change the numbers."""
    parts = ["python benchmarks/peers.py"]
    for name, value in vars(arguments).items():
        if name in ("json", "fresh", "redraw", "threads") or value == parser.get_default(name):
            continue
        if value is True:
            parts.append(f"--{name}")
        elif name in ("published", "libmtl") or Path(str(value)).is_absolute():
            parts.append(f"--{name} PATH")
        else:
            values = value if isinstance(value, list) else [value]
            parts.append(f"--{name} {' '.join(map(str, values))}")
    return " ".join(parts)


def _cases(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    networks = arguments.networks or list(WORKLOADS)
    if arguments.tasks or arguments.full:
        return [(network, k) for network in networks for k in arguments.tasks or TASKS]
    return [case for case in USUAL if case[0] in networks]


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    folder = Path(arguments.write) if arguments.write else None
    file = Path(arguments.json) if arguments.json else folder and folder / "measured.json"
    settings = {
        name: getattr(arguments, name)
        for name in ("minibatches", "batch", "scale", "rounds", "turn", "threads", "device")
    }
    settings["peers"] = [name for name in ("published", "libmtl") if getattr(arguments, name)]
    settings["only"] = arguments.only
    known = json.loads(file.read_text()) if file is not None and file.exists() else None
    if arguments.redraw:
        if known is None:
            parser.error("--redraw needs the numbers of an earlier run: give --write or --json")
        report = known
    else:
        report = {
            "schema": SCHEMA,
            "command": _command(arguments, parser),
            "facts": facts(arguments.device, arguments.threads),
            "settings": settings,
            "cases": [],
        }
        if known and not arguments.fresh and known["settings"] == settings:
            report["cases"] = known["cases"]
        _measure_all(arguments, report, file)
    if folder is None:
        print(markdown(report, {}))
        return
    from sidebyside.figures import draw

    page = folder.with_suffix(".md")
    pictures = {f"{folder.name}/{name}": text for name, text in draw(report, folder).items()}
    write_text(page, fill_page(page.read_text(), markdown(report, pictures)))
    print(f"wrote {page} and what it shows in {folder}")


def _measure_all(arguments: argparse.Namespace, report: dict[str, Any], file: Path | None) -> None:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    done = {(case["network"], case["tasks"]) for case in report["cases"]}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    wanted = _cases(arguments)
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=len(wanted))
        for number, (network, k) in enumerate(wanted):
            progress.update(bar, description=f"{network}, k = {k}", completed=number)
            if (network, k) in done:
                continue
            kind = WORKLOADS[network]
            case = Case(
                network, k, arguments.batch or kind.batch, arguments.scale, arguments.device
            )
            entries = contenders(
                case,
                arguments.minibatches,
                arguments.published and str(Path(arguments.published).resolve()),
                arguments.libmtl and str(Path(arguments.libmtl).resolve()),
            )

            def part(share: float, number: int = number) -> None:
                progress.update(bar, completed=number + share)

            if arguments.only:
                entries = [e for e in entries if any(w in e.label for w in arguments.only)]
            report["cases"].append(
                measure(
                    case,
                    entries,
                    rounds=arguments.rounds,
                    threads=arguments.threads,
                    together=arguments.together,
                    turn_seconds=arguments.turn,
                    slow_seconds=arguments.slow,
                    progress=part,
                )
            )
            if file is not None:
                write_json(file, report)
        progress.update(bar, completed=len(wanted))


if __name__ == "__main__":
    main()
