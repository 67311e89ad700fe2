"""What each estimator makes of a recorded training: its error and its price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from auto_study import smoothed
from estimators_record import REFRESH, STRIDE
from torch import Tensor

from ntkmtl.balance._memory import Averages
from ntkmtl.balance._weigh import DECAY
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._probe import kernel_from_slopes
from ntkmtl.kernel._probe_correction import ProbeCorrection

__all__ = ["study"]

# Probes m, steps between them, decay per update.
SCHEDULES = ((1, 1, 0.98), (4, REFRESH, 0.95), (1, REFRESH, 0.95))


def _largest(blocks: Tensor) -> Tensor:
    """Largest eigenvalues of (T, k, n, n), shape (T, k)."""
    return torch.stack([ExtendedNTK(blocks=b).max_eigenvalues() for b in blocks])


def _log_weights(eigenvalues: Tensor) -> Tensor:
    """Logarithms of the weights of Eq. 15 with exponent 0.5."""
    return 0.5 * (eigenvalues.mean(dim=-1, keepdim=True) / eigenvalues).log()


def study(run: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return error and price of every contender along one recorded training.

    Args:
        run: What ``record`` returned.
        seconds: What ``prices`` returned.

    Returns:
        JSON values: ``rows`` with the root mean square over steps and tasks of the difference of
        log weights from each step's exact ones (``error``) and from those of smoothed exact
        eigenvalues (``smoothed``), and the price (time of a step relative to plain training).
    """
    exact, slopes, free = run["exact"], run["slopes"], run["free"]
    plain = seconds["plain"]
    total, tasks = exact.shape[:2]
    steps = list(range(0, total, STRIDE))
    known = _largest(exact)
    truth = _log_weights(known)[steps]
    calm = _log_weights(smoothed(known.log()).exp())[steps]
    rows: list[dict[str, Any]] = []

    def enter(label: str, group: str, price: float, log_weights: Tensor) -> None:
        rows.append(
            {
                "label": label,
                "group": group,
                "price": price,
                "error": _distance(log_weights, truth),
                "smoothed": _distance(log_weights, calm),
            }
        )

    enter("equal weights", "plain", 1.0, torch.zeros_like(truth))
    blocks = dict(free)
    prices = {name: seconds[name] / plain for name in free}
    for name in [name for name in free if name not in ("pooled", "blockwise")]:
        joint = f"blockwise x {name}"
        # Traces and largest eigenvalues of this one are those of the geometric mean: all that is
        # read of it here.
        blocks[joint] = _geometric(free["blockwise"], free[name])
        prices[joint] = prices[name] + max(0.0, prices["blockwise"] - prices["pooled"])
    largest = {name: _largest(b[steps]) for name, b in blocks.items()}
    for name in blocks:
        enter(name, "free", prices[name], _log_weights(largest[name]))

    probe, once = seconds["probe"] / plain, seconds["exact"] / plain
    for m in (1, 4, 8):
        kernels = torch.stack([kernel_from_slopes(slopes[t, :m]).blocks for t in steps])
        # Gradients of the heads and one pass over the trunk are what pooling has as well.
        enter(
            f"probe m={m}", "probe", prices["pooled"] + m * probe, _log_weights(_largest(kernels))
        )

    enter("exact, each step", "exact", 1.0 + once, truth)
    for every in (REFRESH, 5 * REFRESH):
        last = [t // every * every for t in steps]
        enter(f"exact every {every}, held", "exact", 1.0 + once / every, _log_weights(known[last]))
        averaged = _log_weights(_averaged(known, every)[steps])
        enter(f"exact every {every}, averaged", "averaged", 1.0 + once / every, averaged)
    for name in free:
        every = 10 * REFRESH
        last = [t // every * every for t in steps]
        factor = _largest(exact[last]) / _largest(free[name][last])
        enter(
            f"{name}, exact factor every {every}",
            "exact factor",
            prices[name] + once / every,
            _log_weights(largest[name] * factor),
        )

    for name in blocks:
        for m, every, decay in SCHEDULES:
            correction = ProbeCorrection(tasks, decay=decay)
            found = []
            for t in range(total):
                if t % every == 0:
                    correction.update(slopes[t, :m], ExtendedNTK(blocks=blocks[name][t]))
                if t % STRIDE == 0:
                    found.append(correction.factors())
            often = "every step" if every == 1 else f"every {every}"
            enter(
                f"{name}, corrected, m={m} {often}",
                "corrected",
                prices[name] + m * probe / every,
                _log_weights(largest[name] * torch.stack(found)),
            )
    return {
        "title": run["title"],
        "mode": run["mode"],
        "total": total,
        "steps": steps,
        "seconds": dict(seconds),
        "eigenvalues": [[float(f"{x:.5g}") for x in row] for row in known[steps].tolist()],
        "rows": rows,
    }


def _distance(a: Tensor, b: Tensor) -> float:
    """Root mean square over steps and tasks, each step's mean taken off."""
    difference = a - b
    difference = difference - difference.mean(dim=1, keepdim=True)
    return float(difference.square().mean().sqrt())


def _averaged(eigenvalues: Tensor, every: int) -> Tensor:
    """Moving averages of the logarithms of rare eigenvalues, as ``source="auto"`` has them."""
    total, tasks = eigenvalues.shape
    averages, everyone, found = Averages(tasks, DECAY), torch.arange(tasks), []
    for t in range(total):
        if t % every == 0:
            averages.add(eigenvalues[t], everyone)
        found.append(averages.values())
    return torch.stack(found)


def _geometric(a: Tensor, b: Tensor) -> Tensor:
    """The second kernel, each task's scaled to the geometric mean of both traces."""
    traces = [x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (a, b)]
    return b * (traces[0] / traces[1]).sqrt()[..., None, None]
