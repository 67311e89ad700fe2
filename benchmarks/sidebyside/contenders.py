"""Who is timed: plain training, ntkmtl by every source, and the same methods by its peers.

The published NTKMTL code and LibMTL are run from checkouts that the user names; nothing of them is
kept here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ntkmtl
from ntkmtl.kernel import RememberInputs
from sidebyside.workloads import WORKLOADS, Workload

__all__ = ["PLAIN", "Case", "Contender", "contenders", "make_step"]

Backward = Callable[[list[Tensor], Any], None]


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        network: A name of ``WORKLOADS``.
        tasks: Number of tasks k.
        batch: Samples per step.
        scale: 1 for the size that the tables tell, smaller for tests.
        device: Where.
    """

    network: str
    tasks: int
    batch: int
    scale: float = 1.0
    device: str = "cpu"


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        label: Name in tables.
        group: Whose it is: ``plain``, ``ntkmtl``, ``torchjd``, ``published``, ``libmtl``.
        run: How: a key of ``_RUNS``.
        method: Name of the method there.
        minibatches: The paper's n; 0 for methods without mini-batches.
        options: Further options.
        checkout: Folder of a peer's code.
    """

    label: str
    group: str
    run: str
    method: str = ""
    minibatches: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    checkout: str = ""


PLAIN = Contender("plain sum(losses).backward()", "plain", "plain")


def contenders(
    case: Case,
    minibatches: Sequence[int] = (1, 2, 4, 6, 16),
    published: str | None = None,
    libmtl: str | None = None,
) -> list[Contender]:
    """Return who is timed on a case besides plain training."""
    shared = not WORKLOADS[case.network].separate
    counts = [n for n in minibatches if n <= case.batch]
    middle = 4 if 4 in counts else counts[-1]
    entries = [Contender("ls", "ntkmtl", "balancer", "ls")]

    def ours(method: str, what: str, run: str = "balancer", **options: Any) -> None:
        n = options.get("minibatches", 0)
        name = f"{method} n={n}" if n else method
        label = f"{name}, {what}" if what else name
        entries.append(Contender(label, "ntkmtl", run, method, n, tuple(options.items())))

    for n in counts:
        ours("ntkmtl-sr", "", minibatches=n)
    if shared:
        ours("ntkmtl-sr", "branch", "branched", minibatches=middle)
    ours("ntkmtl-sr", "hooked", minibatches=middle, hooked=True)
    ours("ntkmtl-tk", "", minibatches=middle)
    probe = {"source": "probe", "minibatches": middle}
    ours("ntkmtl-sr", "corrected by a probe every 10 steps", "probed", **probe)
    ours("ntkmtl-sr", "a probe every step", "probed", **probe, corrected=False)
    if shared:
        for method in ("imtl-g", "mgda", "nash-mtl"):
            ours(method, "representation", source="representation")
    ours("ntkmtl", "exact")
    ours("imtl-g", "exact", source="exact")
    for aggregator in ("IMTLG", "MGDA"):
        label = f"TorchJD {aggregator}, mtl_backward"
        entries.append(Contender(label, "torchjd", "jacobian", aggregator))
    entries.append(Contender("TorchJD IMTLG, autogram", "torchjd", "autogram", "IMTLG"))
    calls = counts if case.network == "qm9" else [middle]
    for n in calls:
        label = f"ntkmtl-sr n={n}, k n autograd.grad calls, as the published code"
        entries.append(Contender(label, "published", "calls", minibatches=n))
    if published is not None:
        label = "published NTKMTL, its unused buffer left out"
        entries.append(Contender(label, "published", "published", "NTKMTL", checkout=published))
    if libmtl is not None:
        for method, kwargs in (("IMTL", ()), ("MGDA", (("mgda_gn", "none"),))):
            for rep in (False, True):
                label = f"LibMTL {method}{', rep_grad' if rep else ''}"
                options = (("rep_grad", rep), *kwargs)
                entries.append(
                    Contender(label, "libmtl", "libmtl", method, options=options, checkout=libmtl)
                )
    return entries


def make_step(contender: Contender, case: Case) -> Callable[[], None]:
    """Return one whole training step: forward, backward, Adam."""
    torch.manual_seed(0)
    kind = WORKLOADS[case.network]
    workload = kind.make(case.tasks, case.batch, case.scale, case.device)
    optimizer = torch.optim.Adam(workload.model.parameters(), lr=1e-4)
    step = _RUNS[contender.run](contender, case, workload)

    def whole() -> None:
        optimizer.zero_grad()
        step()
        optimizer.step()

    return whole


# ------------------------------------------------------------------ plain training and ntkmtl


def _plain(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    def step() -> None:
        losses = workload.losses(workload.predict(workload.represent()))
        torch.stack(losses).sum().backward()

    return step


def _balancer(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    balancer = ntkmtl.Balancer(contender.method, tasks=case.tasks, **dict(contender.options))
    branched = contender.run == "branched"

    def step() -> None:
        z: Any = workload.represent()
        features = ntkmtl.branch(z, case.tasks) if branched else z
        balancer.backward(workload.losses(workload.predict(features)), features=features)

    return step


def _probed(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    trunk = RememberInputs(workload.model, "represent")
    balancer = ntkmtl.Balancer(
        contender.method,
        tasks=case.tasks,
        trunk=trunk,
        shared=workload.shared,
        **dict(contender.options),
    )

    def step() -> None:
        z: Any = trunk(workload.inputs)
        balancer.backward(workload.losses(workload.predict(z)), features=z)

    return step


# ------------------------------------------------------------------ TorchJD


def _jacobian(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    from torchjd import aggregation, autojac

    aggregator = getattr(aggregation, contender.method)()
    below = [p for own in workload.own for p in own]
    heads = [list(head.parameters()) for head in workload.model.heads]
    in_heads = {id(p) for head in heads for p in head}
    shared = workload.shared + [p for p in below if id(p) not in in_heads]

    def step() -> None:
        z = workload.represent()
        losses = workload.losses(workload.predict(z))
        autojac.mtl_backward(losses, features=z, tasks_params=heads, shared_params=shared)
        autojac.jac_to_grad(shared, aggregator)

    return step


def _autogram(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    from torchjd import aggregation, autogram

    # Batch norm joins the samples, so the engine cannot take them apart.
    engine = autogram.Engine(*workload.modules, batch_dim=None)
    weighting = getattr(aggregation, f"{contender.method}Weighting")()

    def step() -> None:
        losses = torch.stack(workload.losses(workload.predict(workload.represent())))
        weights = weighting(engine.compute_gramian(losses))
        losses.backward(weights)

    return step


# ------------------------------------------------------------------ the published code


def _calls(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    """NTKMTL-SR with one ``autograd.grad`` per task and mini-batch, as in the published code."""
    n = contender.minibatches

    def step() -> None:
        z = workload.represent()
        per_sample = torch.stack(workload.sample_losses(workload.predict(z)), dim=1)
        losses = torch.stack([chunk.mean(dim=0) for chunk in torch.chunk(per_sample, n)])
        features = z if isinstance(z, list) else [z] * case.tasks
        largest = []
        for i in range(case.tasks):
            rows = []
            for j in range(len(losses)):
                (g,) = torch.autograd.grad(losses[j][i], features[i], retain_graph=True)
                rows.append(g.flatten())
            matrix = torch.stack(rows)
            largest.append(float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1]))
        total = sum(largest)
        # Random heads may leave nothing to balance; the step must not stop over that.
        weights = [(total / max(value, 1e-30)) ** 0.5 for value in largest]
        mean = losses.mean(dim=0)
        (mean * mean.new_tensor(weights)).sum().backward()

    return step


class _WithoutBuffer:
    """Torch, but that zeros of three dimensions take no memory.

    The published NTKMTL makes P x k x k zeros that it never reads: 33 GB for CelebA.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: int, **options: Any) -> Tensor:
        if len(size) == 3:
            return torch.zeros((), **options).expand(size)
        return torch.zeros(*size, **options)


class _Absent(types.ModuleType):
    """Stands for a module that is imported at the top of a file and not used here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _import_from(checkout: str, name: str) -> Any:
    """Import a module of a checkout; packages missing here are left empty."""
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    for names in (("cvxpy",), ("sklearn", "sklearn.cluster"), ("scipy", "scipy.optimize")):
        if names[0] not in sys.modules and importlib.util.find_spec(names[0]) is None:
            sys.modules.update({name: _Absent(name) for name in names})
    return importlib.import_module(name)


def _published(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    module = _import_from(contender.checkout, "methods.weight_methods")
    module.torch = _WithoutBuffer()
    method = module.NTKMTL(n_tasks=case.tasks, device=torch.device(case.device))
    own = [p for task in workload.own for p in task]

    def step() -> None:
        z = workload.represent()
        losses = torch.stack(workload.losses(workload.predict(z)))
        method.backward(
            losses=losses,
            shared_parameters=workload.shared,
            task_specific_parameters=own,
            last_shared_parameters=[],
            representation=z,
        )

    return step


# ------------------------------------------------------------------ LibMTL


def _libmtl(contender: Contender, case: Case, workload: Workload) -> Callable[[], None]:
    # Its package imports every model it has; the weightings need none of them.
    package = types.ModuleType("LibMTL")
    package.__path__ = [str(Path(contender.checkout) / "LibMTL")]
    sys.modules["LibMTL"] = package
    weightings = _import_from(contender.checkout, "LibMTL.weighting")
    options = dict(contender.options)
    rep_grad = bool(options.pop("rep_grad"))
    method = getattr(weightings, contender.method)()
    names = [str(i) for i in range(case.tasks)]

    def zero_grad() -> None:
        for p in workload.shared:
            if p.grad is not None:
                p.grad.zero_()

    method.task_name, method.task_num = names, case.tasks
    method.device, method.rep_grad = torch.device(case.device), rep_grad
    method.get_share_params = lambda: iter(workload.shared)
    method.zero_grad_share_params = zero_grad
    method.init_param()

    def step() -> None:
        features: Any = workload.represent()
        if rep_grad:
            parts = features if isinstance(features, list) else [features] * case.tasks
            copies = [part.detach().clone().requires_grad_() for part in parts]
            whole = isinstance(features, Tensor)
            method.rep = features if whole else dict(zip(names, parts, strict=True))
            method.rep_tasks = dict(zip(names, copies, strict=True))
            features = copies
        losses = torch.stack(workload.losses(workload.predict(features)))
        method.backward(losses, **options)

    return step


_RUNS: dict[str, Callable[[Contender, Case, Workload], Callable[[], None]]] = {
    "plain": _plain,
    "balancer": _balancer,
    "branched": _balancer,
    "probed": _probed,
    "jacobian": _jacobian,
    "autogram": _autogram,
    "calls": _calls,
    "published": _published,
    "libmtl": _libmtl,
}
