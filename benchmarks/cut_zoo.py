"""Where should the representation of several losses end? Two rules beside exact kernels.

    python benchmarks/cut_zoo.py
    python benchmarks/cut_zoo.py --json docs/cut/measured.json --page docs/cut.md
    python benchmarks/cut_zoo.py --render docs/cut/measured.json --page docs/cut.md

A part of a network may count as shared if two or more tasks reach it, which is the library's rule
(``ntkmtl.graph.find_cut``), or if all tasks do. For each network, at random weights and after 30
and 100 steps of plain training on one batch, the representation's weights by both rules are held
against those of the exact kernel of the parameters that two or more tasks share. The error is the
root mean square over tasks of the difference of log weights, the mean over tasks taken off.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from cut_zoo_graphs import GRAPHS, Graph
from sidebyside.tables import fill_page
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ntkmtl.files import write_json, write_text
from ntkmtl.graph import Walk, crossing_gradients, find_cut, starts
from ntkmtl.graph._walk import PARAMETERS

STAGES = (0, 30, 100)
"""Steps of plain training after which weights are compared."""

EPSILON = 1e-300


def exact_eigenvalues(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return squared norms of the gradients of the parameters that two or more tasks share."""
    rows = [
        torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    squares = torch.tensor(
        [[0.0 if g is None else float(g.double().square().sum()) for g in row] for row in rows],
        dtype=torch.float64,
    )
    reached = torch.tensor([[g is not None for g in row] for row in rows])
    return squares[:, reached.sum(dim=0) >= 2].sum(dim=1)


def by_two_or_more(losses: Sequence[Tensor]) -> Tensor | None:
    """Return the representation's eigenvalues by the library's rule, None if a task bypasses it."""
    cut = find_cut(losses)
    if not cut.clean or not cut.targets:
        return None
    own, _ = crossing_gradients(starts(losses), cut, retain=True)
    return torch.tensor([_squares(task.values()) for task in own], dtype=torch.float64)


def by_all(losses: Sequence[Tensor]) -> Tensor | None:
    """Return them where a node counts as shared if all tasks reach it.

    Where that leaves no parameter below there is no such representation, and None is returned.
    With two tasks both rules are one.
    """
    if len(losses) == 2:
        return by_two_or_more(losses)
    found = find_cut(losses).walk
    full = (1 << len(losses)) - 1
    if not any(found.masks[node] == full for node in found.leaves):
        return None
    if any(found.masks[node] == full and node not in found.routes for node, _ in found.roots):
        return None  # a loss is itself a part of the shared region
    edges: dict[Any, list[tuple[int, Any, int]]] = {}
    for node, mask in found.masks.items():
        if (mask != full or node in found.routes) and (below := _frontier(found, node, full)):
            edges[node] = below
    if any(found.kind(child) == PARAMETERS for below in edges.values() for _, child, _ in below):
        return None
    sent = [_sent(loss, edges) for loss in losses]
    return torch.tensor([_squares(task.values()) for task in sent], dtype=torch.float64)


def _frontier(found: Walk, node: Any, full: int) -> list[tuple[int, Any, int]]:
    return [
        (position, child, number)
        for position, (child, number) in enumerate(found.children[node])
        if child is not None and found.masks[child] == full and child not in found.routes
    ]


def _sent(loss: Tensor, edges: Mapping[Any, list[tuple[int, Any, int]]]) -> dict[Any, Tensor]:
    """Return what one loss sends over each edge, not what flows on inside the shared region."""
    noted: dict[Any, Tensor] = {}

    def hook_of(below: list[tuple[int, Any, int]]) -> Any:
        def hook(inputs: tuple[Tensor | None, ...], _: Any) -> None:
            for position, child, number in below:
                gradient = inputs[position]
                if gradient is not None:
                    before = noted.get((child, number), 0.0)
                    noted[child, number] = before + gradient

        return hook

    handles = [node.register_hook(hook_of(below)) for node, below in edges.items()]
    targets = {(child, number) for below in edges.values() for _, child, number in below}
    torch.autograd.grad(
        loss, [GradientEdge(*t) for t in targets], retain_graph=True, allow_unused=True
    )
    for handle in handles:
        handle.remove()
    return noted


def _squares(gradients: Any) -> float:
    return sum(float(g.double().square().sum()) for g in gradients)


def _log_weights(eigenvalues: Tensor) -> Tensor:
    logs = -0.5 * (eigenvalues + EPSILON).log()
    return logs - logs.mean()


def error(estimate: Tensor | None, truth: Tensor) -> float | None:
    """Return the root mean square over tasks of the difference of log weights."""
    if estimate is None or not bool((estimate > 0).all()):
        return None
    return float((_log_weights(estimate) - _log_weights(truth)).square().mean().sqrt())


def _train(graph: Graph, steps: int) -> None:
    optimizer = torch.optim.Adam(graph.parameters, lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(graph.losses()).sum().backward()
        optimizer.step()


def _equal(losses: Sequence[Tensor]) -> Tensor:
    return torch.ones(len(losses), dtype=torch.float64)


RULES = {"equal": _equal, "two": by_two_or_more, "all": by_all}


def study(name: str, seeds: int, stages: Sequence[int]) -> dict[str, Any]:
    """Return number of tasks and the errors of both rules, by steps of training and seed."""
    found: dict[str, dict[str, list[float | None]]] = {
        str(steps): {rule: [] for rule in RULES} for steps in stages
    }
    tasks = 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        graph, done = GRAPHS[name](), 0
        for steps in stages:
            _train(graph, steps - done)
            done = steps
            losses = graph.losses()
            tasks = len(losses)
            truth = exact_eigenvalues(losses, graph.parameters)
            for rule, estimate in RULES.items():
                found[str(steps)][rule].append(error(estimate(losses), truth))
    return {"tasks": tasks, "errors": found}


def _root_mean_square(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    return math.sqrt(statistics.fmean([v * v for v in known]))


def _rows(report: Mapping[str, Any], stage: str) -> list[list[float | None]]:
    """Return errors with equal weights, by two or more and by all, for each network."""
    return [
        [_root_mean_square(case["errors"][stage][rule]) for rule in RULES]
        for case in report["graphs"].values()
    ]


def summary(report: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return numbers of networks, and each rule's error over those where both exist."""
    rows = _rows(report, stage)
    both = [[v for v in row if v is not None] for row in rows if None not in row]
    differ = [row for row in both if abs(row[1] - row[2]) > 1e-6]

    def together(some: Sequence[Sequence[float]]) -> list[float | None]:
        return [_root_mean_square([row[i] for row in some]) for i in range(len(RULES))]

    return {
        "both": len(both),
        "differ": len(differ),
        "nearer": sum(row[1] < row[2] for row in differ),
        "errors": together(both),
        "errors where they differ": together(differ),
        "two alone": sum(row[1] is not None and row[2] is None for row in rows),
        "all alone": sum(row[1] is None and row[2] is not None for row in rows),
        "neither": sum(row[1] is None and row[2] is None for row in rows),
    }


def _cells(two: float | None, every: float | None) -> list[str]:
    """Return two cells, the nearer one in bold where they differ."""
    if two is None or every is None:
        return ["bypass" if v is None else f"{v:.2f}" for v in (two, every)]
    best = min(two, every)
    tie = abs(two - every) < 5e-3
    return [f"**{v:.2f}**" if v == best and not tie else f"{v:.2f}" for v in (two, every)]


def table(report: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    facts = report["facts"]
    stages = [str(stage) for stage in facts["stages"]]
    heads = [f"{rule}, {stage}" for stage in stages for rule in ("two", "all")]
    lines = [
        f"Measured on {facts['date']}, torch {facts['torch']}: {len(report['graphs'])} networks, "
        f"{facts['seeds']} seeds. Columns: the rule and the steps of plain training before. "
        "Numbers: root mean squares over tasks and seeds.",
        "",
        f"| network | k | {' | '.join(heads)} |",
        f"| --- | ---: |{' ---: |' * len(heads)}",
    ]
    columns = [_rows(report, stage) for stage in stages]
    for at, (name, case) in enumerate(report["graphs"].items()):
        cells = [cell for rows in columns for cell in _cells(*rows[at][1:])]
        lines.append(f"| {name} | {case['tasks']} | {' | '.join(cells)} |")
    lines += ["", *_summary_lines(report, stages)]
    return "\n".join(lines)


def _summary_lines(report: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    found = [summary(report, stage) for stage in stages]
    counts = {
        "networks on which both rules exist": "both",
        "of these, on which they differ": "differ",
        "of these, on which two or more is nearer": "nearer",
        "networks on which only two or more exists": "two alone",
        "networks on which only all exists": "all alone",
        "networks on which neither exists": "neither",
    }
    lines = [
        "| | " + " | ".join(f"{stage} steps" for stage in stages) + " |",
        "| --- |" + " ---: |" * len(stages),
    ]
    lines += [
        f"| {label} | {' | '.join(str(s[key]) for s in found)} |" for label, key in counts.items()
    ]
    for key, where in (("errors where they differ", "they differ"), ("errors", "both exist")):
        for i, rule in enumerate(("equal weights", "two or more", "all")):
            cells = ["none" if s[key][i] is None else f"{s[key][i]:.2f}" for s in found]
            lines.append(f"| error where {where}: {rule} | {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Two rules for the cut beside exact kernels.")
    add = parser.add_argument
    add("--graphs", nargs="+", choices=list(GRAPHS), default=list(GRAPHS), metavar="NAME")
    add("--seeds", type=int, default=10)
    add("--steps", nargs="+", type=int, default=list(STAGES), help="of plain training")
    add("--json", type=Path, help="where the numbers go")
    add("--page", type=Path, help="the page whose marked part is filled")
    add("--render", type=Path, help="numbers of an earlier run: measure nothing")
    arguments = parser.parse_args(argv)
    if arguments.render is not None:
        report = json.loads(arguments.render.read_text("utf-8"))
    else:
        torch.set_num_threads(1)
        stages = sorted(set(arguments.steps))
        report = {
            "facts": {
                "date": datetime.now(timezone.utc).date().isoformat(),
                "torch": torch.__version__,
                "seeds": arguments.seeds,
                "stages": stages,
            },
            "graphs": {name: study(name, arguments.seeds, stages) for name in arguments.graphs},
        }
    if arguments.json is not None:
        write_json(arguments.json, report)
    text = table(report)
    if arguments.page is None:
        print(text)
    else:
        write_text(arguments.page, fill_page(arguments.page.read_text("utf-8"), text))


if __name__ == "__main__":
    main()
