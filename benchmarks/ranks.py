"""What several processes send each other in a step, and how that grows with their number.

    python benchmarks/ranks.py --write docs/ranks

Two parts. *Counted*: 2 and 4 processes on 127.0.0.1 by gloo take a step with each source of the
kernel; every collective is counted as it is called, compared with a formula, and the bytes that
crossed the loopback interface are read off it. *Simulated*: one process takes the step of one of 2
to 64 ranks; its own processor time is measured and its bytes are counted, while the answers of the
others are copies of its own. The time on the network is a model: bytes over bandwidth and messages
times latency, both as given.

The exit status is 1 where a count is not what the formula says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from ntkmtl import Balancer
from ntkmtl.kernel._ranks import Ranks

__all__ = ["CASES", "Case", "Counter", "Shape", "count", "expected", "main", "simulate"]

BUFFER = 1 << 25
"""Bytes of the largest piece that is exchanged at once."""
ALONE = 32
"""Mini-batches of all ranks up to which each rank solves for every eigenvalue."""
EXTRA = 1 << 16
"""Bytes that the further messages of slices count as."""

BEGIN, END = "<!-- ranks: measured -->", "<!-- end of what was measured -->"


@dataclass(frozen=True)
class Shape:
    """A network and its batch, in fp32.

    Attributes:
        tasks: Number k.
        minibatches: Number n of one rank.
        batch: Samples of one rank.
        inputs: Width of a sample.
        hidden: Width of the hidden layers.
        features: Entries D of the representation of one sample.
    """

    tasks: int = 11
    minibatches: int = 4
    batch: int = 64
    inputs: int = 128
    hidden: int = 512
    features: int = 256

    @property
    def shared(self) -> int:
        """Parameters P of the trunk."""
        widths = (self.inputs, self.hidden, self.hidden, self.features)
        return sum((a + 1) * b for a, b in itertools.pairwise(widths))

    @property
    def heads(self) -> int:
        """Parameters of all heads."""
        return self.tasks * (self.features + 1)


@dataclass(frozen=True)
class Case:
    """A source of the kernel.

    Attributes:
        label: What the table calls it.
        method: The method.
        options: Those of the Balancer, but for the mini-batches.
        requires: ``losses``, ``eigenvalues`` (a block per task), ``gramian`` or ``kernel``.
        source: What :func:`expected` knows it by.
        gathers: Whether everything is gathered, as it would be without slices.
    """

    label: str
    method: str
    options: Mapping[str, Any]
    requires: str
    source: str
    gathers: bool = False


_SR = {"source": "representation"}
CASES = (
    Case("no kernel (ls)", "ls", {}, "losses", "losses"),
    Case("pooled", "ntkmtl-sr", {"pooling": "pooled"}, "eigenvalues", "pooled"),
    Case("blockwise", "ntkmtl-sr", {"pooling": "blockwise"}, "eigenvalues", "blockwise"),
    Case("kernel", "ntkmtl-tk", {}, "eigenvalues", "kernel"),
    Case("kernel, last layer", "ntkmtl-tk", {"last_layer": True}, "eigenvalues", "last layer"),
    Case("probe", "ntkmtl", {"source": "probe", "corrected": False}, "eigenvalues", "probe"),
    Case("exact", "ntkmtl", {}, "eigenvalues", "exact"),
    Case("pooled, Gramian", "imtl-g", {**_SR, "pooling": "pooled"}, "gramian", "pooled"),
    Case("blockwise, Gramian", "imtl-g", _SR, "gramian", "blockwise"),
    Case("exact, Gramian", "imtl-g", {"source": "exact"}, "gramian", "exact"),
    Case(
        "exact, all blocks",
        "ntkmtl-x",
        {"source": "exact", "statistic": "aligned"},
        "kernel",
        "exact",
    ),
)
POOLED_GATHERED = Case(
    "pooled, gathered", "ntkmtl-sr", {"pooling": "pooled"}, "eigenvalues", "pooled", True
)
KERNEL_GATHERED = Case("kernel, gathered", "ntkmtl-tk", {}, "eigenvalues", "kernel", True)
"""What the choice between slices and gathering is compared with."""

Totals = dict[str, tuple[int, int]]
"""Calls of each collective, and the bytes that one rank hands to all of them."""


def expected(case: Case, shape: Shape, ranks: int) -> Totals:
    """Return what one step hands to each collective, by formula.

    The Balancer's alone: the gradients are DDP's.

    Args:
        case: The source.
        shape: The network.
        ranks: Number R.
    """
    k, n, columns = shape.tasks, shape.minibatches, shape.features
    gathers = [16 * k]  # losses, and who has a label
    slices: list[int] = []
    sums: list[int] = []

    def sliced(rows: int, entries: int) -> None:
        """Pieces that fill a buffer at most, each padded to a multiple of R columns."""
        step = ranks * max(1, BUFFER // (4 * rows * ranks))
        for start in range(0, entries, step):
            width = -(-min(step, entries - start) // ranks) * ranks
            slices.append(4 * rows * width)

    def cut(rows: int, entries: int, gathered: list[int], worth: int = 1) -> None:
        """Slices where they move less than ``worth`` times what gathering does, or everything."""
        kernel = 8 * (k * k if case.requires == "gramian" else k * (ranks * n) ** 2)
        price = 4 * rows * entries + 2 * kernel + EXTRA * ranks
        if case.gathers or price >= worth * ranks * sum(gathered):
            gathers.extend(gathered)
        else:
            sliced(rows, entries)
            sums.append(kernel)

    gramian = case.requires == "gramian"
    if case.requires != "losses":
        gathers.append(8 * k * n)  # shares of samples
    if case.source == "pooled" and gramian:
        sliced(k, columns)
        sums.append(8 * k * k)
    elif case.source == "pooled":
        gathers.append(8 * k * n)  # scales
        cut(k * n, columns, [4 * k * n * columns])
    elif case.source == "blockwise" and gramian:
        sums.append(8 * k * k)
    elif case.source in ("blockwise", "probe"):
        gathers.append(8 * k * n)
    elif case.source in ("kernel", "last layer"):
        gathers += [8 * n, 8 * k * n]  # sizes and scales of mini-batches
        inputs = columns if case.source == "kernel" else shape.hidden
        samples = [4 * shape.batch * columns] * k + [4 * shape.batch * inputs]
        constant = case.source == "last layer"
        cut(k * n, columns * (inputs + constant), samples, worth=2)
    elif case.source == "exact" and gramian:
        sliced(k, shape.shared)
        sums.append(8 * k * k)
    elif case.source == "exact" and case.requires == "kernel":
        sliced(k * n, shape.shared)
        sums.append(8 * (k * ranks * n) ** 2)
    elif case.source == "exact":
        for _ in range(k):
            sliced(n, shape.shared)
        sums += [8 * (ranks * n) ** 2] * k
    if case.requires == "eigenvalues" and case.source != "blockwise" and ranks * n > ALONE:
        sums.append(8 * k)  # eigenvalues that each rank solved for
    found = {"all_gather": gathers, "all_to_all": slices, "all_reduce": sums, "broadcast": [8 * k]}
    return {name: (len(sizes), sum(sizes)) for name, sizes in found.items() if sizes}


def traffic(totals: Totals, ranks: int) -> tuple[float, float]:
    """Return bytes that one rank sends, as many as it receives, and messages one after another.

    Assumed are a ring for all-gather and all-reduce, pairs for all-to-all, and a tree for
    broadcast, whose bytes are those of the mean rank.
    """
    sent = messages = 0.0
    for name, (calls, size) in totals.items():
        if name == "all_gather":
            sent += (ranks - 1) * size
            messages += (ranks - 1) * calls
        elif name == "all_to_all":
            sent += (ranks - 1) / ranks * size
            messages += (ranks - 1) * calls
        elif name == "all_reduce":
            sent += 2 * (ranks - 1) / ranks * size
            messages += 2 * (ranks - 1) * calls
        else:
            sent += (ranks - 1) / ranks * size
            messages += math.ceil(math.log2(ranks)) * calls
    return sent, messages


# ------------------------------------------------------------------------------------------------
# Counting


class Counter:
    """Counts the collectives of ``torch.distributed`` as they are called.

    Args:
        answers: Whether to put copies of what is sent into what is received, as there is nobody
            else.

    Attributes:
        totals: What was handed to each but for the gradients.
        gradients: What DDP handed to its all-reduce.
    """

    def __init__(self, answers: bool = False) -> None:
        self.answers = answers
        self.totals: Totals = {}
        self.gradients: Totals = {}
        self._of_gradients = False

    def reset(self) -> None:
        """Forget what was counted."""
        self.totals, self.gradients = {}, {}

    def _add(self, name: str, tensor: Tensor) -> None:
        totals = self.gradients if self._of_gradients else self.totals
        calls, size = totals.get(name, (0, 0))
        totals[name] = (calls + 1, size + tensor.numel() * tensor.element_size())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is called within."""
        gather, reduce = dist.all_gather, dist.all_reduce
        slices, broadcast = dist.all_to_all_single, dist.broadcast

        def all_gather(parts: list[Tensor], own: Tensor, **options: Any) -> Any:
            self._add("all_gather", own)
            done = gather(parts, own, **options)
            if self.answers:
                for part in parts:
                    part.copy_(own)
            return done

        def all_to_all_single(received: Tensor, sent: Tensor, **options: Any) -> Any:
            self._add("all_to_all", sent)
            done = slices(received, sent, **options)
            if self.answers:
                received.copy_(sent)
            return done

        def all_reduce(tensor: Tensor, *others: Any, **options: Any) -> Any:
            self._add("all_reduce", tensor)
            return reduce(tensor, *others, **options)

        def send(tensor: Tensor, **options: Any) -> Any:
            self._add("broadcast", tensor)
            return broadcast(tensor, **options)

        with mock.patch.multiple(
            dist,
            all_gather=all_gather,
            all_to_all_single=all_to_all_single,
            all_reduce=all_reduce,
            broadcast=send,
        ):
            yield

    def hook(self, group: Any, bucket: Any) -> Any:
        """Average DDP's gradients as DDP does by itself, and count them."""
        self._of_gradients = True
        try:
            if not self.answers:
                return default_hooks.allreduce_hook(group, bucket)
            self._add("all_reduce", bucket.buffer())
            alone: Any = torch.futures.Future()
            alone.set_result(bucket.buffer())
            return alone
        finally:
            self._of_gradients = False


class _Net(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.last = nn.Linear(shape.hidden, shape.features)
        self.trunk = nn.Sequential(
            nn.Linear(shape.inputs, shape.hidden),
            nn.Tanh(),
            nn.Linear(shape.hidden, shape.hidden),
            nn.Tanh(),
            self.last,
        )
        self.heads = nn.ModuleList(nn.Linear(shape.features, 1) for _ in range(shape.tasks))
        self.features: Any = None

    def forward(self, x: Tensor) -> list[Tensor]:
        from ntkmtl.kernel import branch

        self.features = branch(self.trunk(x), len(self.heads))
        return [head(z) for head, z in zip(self.heads, self.features, strict=True)]


def _stepper(case: Case, shape: Shape, counter: Counter, rank: int) -> Callable[[], None]:
    """Return a function that takes one step with DDP."""
    torch.manual_seed(0)
    net = _Net(shape)
    options = dict(case.options)
    if case.requires != "losses":
        options["minibatches"] = shape.minibatches
    if options.get("source") == "probe":
        options["trunk"] = net.trunk
    if options.pop("last_layer", False):
        options["last_layer"] = net.last
    balancer = Balancer(case.method, weight_heads=True, **options)
    parallel = nn.parallel.DistributedDataParallel(net, init_sync=False)
    # DDP compares annotations, which are texts in this file: it is shown a hook without.
    parallel.register_comm_hook(None, lambda group, bucket: counter.hook(group, bucket))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1 + rank)
    x = torch.randn(shape.batch, shape.inputs, generator=generator)
    y = torch.randn(shape.tasks, shape.batch, 1, generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        outputs = parallel(x)
        losses = [(o - t).square().mean() for o, t in zip(outputs, y, strict=True)]
        balancer.backward(losses, features=net.features)
        optimizer.step()

    return step


@contextmanager
def _gathering(case: Case) -> Iterator[None]:
    """Gather everything where the case says so."""
    if not case.gathers:
        yield
        return
    with mock.patch.object(Ranks, "_slices_are_less", return_value=False):
        yield


def _on_loopback() -> int:
    """Return the bytes that the loopback interface received so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    raise OSError("/proc/net/dev lists no interface lo")


def _counted(rank: int, ranks: int, meet: str, out: str, shape: Shape, steps: int) -> None:
    """One of the processes of :func:`count`."""
    import os

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks)
    rows = []
    try:
        for case in CASES:
            counter = Counter()
            step = _stepper(case, shape, counter, rank)
            with counter.watching():
                step()
                dist.barrier()
                before = _on_loopback()
                dist.barrier()
                counter.reset()
                for _ in range(steps):
                    step()
                totals, gradients = dict(counter.totals), dict(counter.gradients)
                dist.barrier()
                crossed = _on_loopback() - before

            def each(found: Totals) -> Totals:
                return {
                    key: (calls // steps, size // steps) for key, (calls, size) in found.items()
                }

            rows.append(
                {
                    "label": case.label,
                    "totals": each(totals),
                    "gradients": each(gradients),
                    "loopback": crossed / ranks / steps,
                }
            )
    finally:
        dist.destroy_process_group()
    Path(out, f"{rank}.json").write_text(json.dumps(rows))


def count(shape: Shape, ranks: int, steps: int = 3) -> list[dict[str, Any]]:
    """Count what real processes send, and compare it with the formula.

    Args:
        shape: The network.
        ranks: Number of processes.
        steps: Steps that are counted, after one that is not.

    Returns:
        One row per case: collectives, bytes that one rank sends, bytes on the loopback interface
        per rank with the gradients, and whether the count is the formula's on every rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        meet = Path(folder, "meet").as_uri()
        torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _counted, args=(ranks, meet, folder, shape, steps), nprocs=ranks, join=True
        )
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    rows = []
    for number, case in enumerate(CASES):
        formula = expected(case, shape, ranks)
        mine = [
            {key: (calls, size) for key, (calls, size) in each[number]["totals"].items()}
            for each in found
        ]
        gradients = [sum(size for _, size in e[number]["gradients"].values()) for e in found]
        plain = 4 * (shape.shared + shape.heads)
        sent, messages = traffic(formula, ranks)
        rows.append(
            {
                "label": case.label,
                "ranks": ranks,
                "totals": mine[0],
                "formula": formula,
                "equal": all(m == formula for m in mine) and all(g == plain for g in gradients),
                "sent": sent,
                "messages": messages,
                "gradients": traffic({"all_reduce": (1, plain)}, ranks)[0],
                "loopback": found[0][number]["loopback"],
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------
# Simulating


def simulate(case: Case, shape: Shape, ranks: int, steps: int = 5) -> dict[str, Any]:
    """Take the steps of one of many ranks, alone.

    Args:
        case: The source.
        shape: The network.
        ranks: Number of ranks that there would be.
        steps: Steps that are timed, after one that is not.

    Returns:
        Bytes sent and messages for the weights and for the gradients, and the median processor time
        of a step in seconds.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        counter = Counter(answers=True)
        step = _stepper(case, shape, counter, 0)
        seconds = []
        with counter.watching(), _gathering(case):
            step()
            for _ in range(steps):
                counter.reset()
                begun = time.process_time()
                step()
                seconds.append(time.process_time() - begun)
    finally:
        dist.destroy_process_group()
    sent, messages = traffic(counter.totals, ranks)
    gradients, also = traffic(counter.gradients, ranks)
    return {
        "label": case.label,
        "ranks": ranks,
        "equal": counter.totals == expected(case, shape, ranks),
        "sent": sent,
        "messages": messages,
        "gradients": gradients,
        "gradient_messages": also,
        "seconds": statistics.median(seconds),
    }


def network_seconds(row: Mapping[str, Any], bandwidth: float, latency: float) -> float:
    """Return the modeled time on the network for the weights alone.

    Args:
        row: What :func:`simulate` returned.
        bandwidth: Bytes in a second.
        latency: Seconds per message.
    """
    return float(row["sent"] / bandwidth + row["messages"] * latency)


# ------------------------------------------------------------------------------------------------
# Showing


def _bytes(size: float) -> str:
    for unit in ("B", "kB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} MB"


def _shape_said(shape: Shape) -> str:
    return (
        f"k = {shape.tasks} tasks, n = {shape.minibatches} mini-batches and {shape.batch} samples "
        f"on each rank, D = {shape.features}, P = {shape.shared:,}, fp32"
    )


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables."""
    small, large = Shape(**report["counted_shape"]), Shape(**report["shape"])
    lines = [
        f"**Counted** with real processes by gloo on 127.0.0.1: {_shape_said(small)}. Bytes that "
        "one rank sends in a step, as many as it receives.",
        "",
        "| source | ranks | all-gather | all-to-all | all-reduce | sent for the weights | "
        "formula | DDP's gradients | on the loopback, both |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in report["counted"]:
        calls = [str(row["totals"].get(n, (0, 0))[0]) for n in ("all_gather", "all_to_all")]
        calls.append(str(row["totals"].get("all_reduce", (0, 0))[0]))
        lines.append(
            f"| {row['label']} | {row['ranks']} | {' | '.join(calls)} | {_bytes(row['sent'])} | "
            f"{'equal' if row['equal'] else 'NOT EQUAL'} | {_bytes(row['gradients'])} | "
            f"{_bytes(row['loopback'])} |"
        )
    sizes = sorted({row["ranks"] for row in report["simulated"]})
    labels = list(dict.fromkeys(row["label"] for row in report["simulated"]))
    at = {(row["label"], row["ranks"]): row for row in report["simulated"]}
    bandwidth, latency = report["bandwidth"], report["latency"]
    head = "| source | " + " | ".join(f"R = {size}" for size in sizes) + " |"
    rule = "| --- |" + " ---: |" * len(sizes)

    def table(said: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        lines.extend(["", said, "", head, rule])
        for label in labels:
            cells = [cell(at[label, size]) if (label, size) in at else "" for size in sizes]
            lines.append(f"| {label} | {' | '.join(cells)} |")

    table(
        "**Simulated**, bytes that one rank sends for the weights in a step: "
        f"{_shape_said(large)}.",
        lambda row: _bytes(row["sent"]),
    )
    cells = [_bytes(at[labels[0], size]["gradients"]) for size in sizes]
    lines.append(f"| *DDP's gradients, beside it* | {' | '.join(cells)} |")
    large_map = replace(large, features=512 * 8 * 8)
    lines.extend(
        ["", "**By formula**, for features of 512 x 8 x 8 and all else as above.", "", head, rule]
    )
    for case in (*CASES[1:3], POOLED_GATHERED, CASES[7]):
        found = [traffic(expected(case, large_map, size), size)[0] for size in sizes]
        lines.append(f"| {case.label} | {' | '.join(map(_bytes, found))} |")
    table(
        "**Simulated**, processor time of a rank's whole step in ms, measured on one core.",
        lambda row: f"{1e3 * row['seconds']:.3g}",
    )
    table(
        "**Modeled**, time on the network for the weights in ms, at "
        f"{8e-9 * bandwidth:g} Gbit/s and {1e6 * latency:g} us per message.",
        lambda row: f"{1e3 * network_seconds(row, bandwidth, latency):.3g}",
    )
    return "\n".join(lines)


_SHOWN = {
    "pooled": "#0072b2",
    "blockwise": "#009e73",
    "kernel": "#e69f00",
    "exact": "#d55e00",
    "exact, Gramian": "#cc79a7",
    "exact, all blocks": "#5b6570",
}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw bytes and time of a step over the number of ranks.

    Args:
        report: As :func:`main` makes it.
        path: A PNG file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from ntkmtl.files import atomic_write

    rows = report["simulated"]
    sizes = sorted({row["ranks"] for row in rows})

    def line(label: str, read: Callable[[Mapping[str, Any]], float]) -> list[float]:
        at = {row["ranks"]: row for row in rows if row["label"] == label}
        return [read(at[size]) for size in sizes if size in at]

    def milliseconds(row: Mapping[str, Any]) -> float:
        network = network_seconds(row, report["bandwidth"], report["latency"])
        return 1e3 * (float(row["seconds"]) + network)

    style = {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):  # type: ignore[arg-type]
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
        for label, color in _SHOWN.items():
            left.plot(
                sizes, line(label, lambda r: r["sent"] / 1e6), "o-", c=color, label=label, ms=4
            )
            right.plot(sizes, line(label, milliseconds), "o-", c=color, label=label, ms=4)
        gathered, color = KERNEL_GATHERED.label, _SHOWN["kernel"]
        name = "kernel, had all been gathered"
        left.plot(sizes, line(gathered, lambda r: r["sent"] / 1e6), ":", c=color, label=name)
        right.plot(sizes, line(gathered, milliseconds), ":", c=color)
        gradients = line("no kernel (ls)", lambda r: r["gradients"] / 1e6)
        left.plot(sizes, gradients, "--", c="#1c2128", label="DDP's gradients; plain training")
        plain = line("no kernel (ls)", milliseconds)
        right.plot(sizes, plain, "--", c="#1c2128", label="plain training")
        left.set_title("Sent by one rank in a step for the weights", loc="left", fontsize=10)
        left.set_ylabel("MB")
        right.set_title("Step: processor time measured + network modeled", loc="left", fontsize=10)
        right.set_ylabel("ms")
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xlabel("ranks")
            axes.grid(color="#e8ebef")
            axes.set_axisbelow(True)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
        )
        with atomic_write(path) as file:
            figure.savefig(file, dpi=150, format="png")
        plt.close(figure)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    small, shape = Shape(tasks=4, batch=32, inputs=32, hidden=64, features=256), Shape()
    counted = [row for ranks in arguments.real for row in count(small, ranks)]
    simulated = []
    for case in (*CASES, KERNEL_GATHERED):
        for ranks in arguments.ranks:
            simulated.append(simulate(case, shape, ranks, arguments.steps))
            print(f"{case.label}, {ranks} ranks", file=sys.stderr)
    return {
        "torch": torch.__version__,
        "counted_shape": asdict(small),
        "shape": asdict(replace(shape)),
        "bandwidth": arguments.bandwidth * 1e9 / 8,
        "latency": arguments.latency * 1e-6,
        "counted": counted,
        "simulated": simulated,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What processes send each other in a step.")
    add = parser.add_argument
    add("--real", nargs="*", type=int, default=[2, 4], help="numbers of real processes")
    add("--ranks", nargs="+", type=int, default=[2, 4, 8, 16, 32, 64], help="simulated ones")
    add("--steps", type=int, default=5, help="steps that are timed in each simulation")
    add("--bandwidth", type=float, default=10.0, metavar="GBIT", help="of the model, per second")
    add("--latency", type=float, default=20.0, metavar="US", help="of the model, per message")
    add("--write", metavar="PAGE", type=Path, help="numbers and figure to PAGE/, tables to PAGE.md")
    arguments = parser.parse_args(argv)
    if any(size < 2 for size in (*arguments.real, *arguments.ranks)):
        parser.error("one process sends nothing: give numbers of at least 2")
    torch.set_num_threads(1)
    report = _measure(arguments)
    text = markdown(report)
    print(text)
    if arguments.write is not None:
        from ntkmtl.files import write_json, write_text

        folder = arguments.write
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "measured.json", report)
        draw(report, folder / "ranks.png")
        page = folder.with_suffix(".md")
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        write_text(page, f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
    wrong = [row for row in (*report["counted"], *report["simulated"]) if not row["equal"]]
    for row in wrong:
        print(f"{row['label']}, {row['ranks']} ranks: not the formula's", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
