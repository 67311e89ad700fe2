"""Predictions of a comparison's best network for single samples, and pictures of these."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkmtl.bench.problems._dates import date_texts
from ntkmtl.bench.problems.base import Prediction, Sample
from ntkmtl.bench.report._runs import ProblemRuns
from ntkmtl.bench.report._words import printable
from ntkmtl.bench.runs.run import best_run
from ntkmtl.bench.trained import TrainedModel, load
from ntkmtl.bench.trained._model import joined
from ntkmtl.errors import imports_for

Array = NDArray[np.float64]

LOOKED_AT = 1_000
"""Samples of the test split, from its start, of which the worst are shown."""

_WORST = 8
_FRAMES = 4
_TASKS = 4
"""Tasks shown of a sample: those with the largest errors."""


def gallery_of(runs: ProblemRuns) -> dict[str, Any]:
    """Return what the template shows of the predictions of the best network on validation.

    Of numbers and classes the samples that are furthest off are shown, of images of pixels frames
    evenly spaced over the split.

    Raises:
        ValueError: No run kept its network, the problem cannot be created, or says no labels.
    """
    run = best_run([run for group in runs.multi.values() for run in group.values()])
    if run is None:
        raise ValueError(
            f"no gallery of {runs.problem}: no run kept its network, or runs differ in metrics. "
            "Train without --no-model, or leave out --gallery"
        )
    network = load(run)
    size = network.problem.size("test")
    frames = torch.linspace(0, size - 1, min(_FRAMES, size)).round().long().unique()
    first = _predict(network, frames)
    told = f"{run.config.method}, seed {run.config.seed}, the best on validation"
    if any(said.values.ndim > 1 for said in first.predictions.values()):
        return {
            "told": f"{printable(told)}; frames evenly spaced over the test split.",
            "cards": [_frame_card(network, first, place) for place in range(len(frames))],
        }
    seen = _predict(network, torch.arange(min(size, LOOKED_AT)))
    cards = _worst_cards(network, seen)
    numbered = (
        " Samples are numbered from 1, in the order in which ntkmtl predict RUN --split test "
        "writes them; its column row begins with 0."
        if any(card["name"].startswith("test sample") for card in cards)
        else ""
    )
    return {
        "told": f"{printable(told)}; the samples furthest off among "
        f"{'all' if size <= LOOKED_AT else 'the first'} {len(seen.indices):,} of the test split. "
        "A task counts by its error in standard deviations of its labels, a class by one minus "
        f"the probability of the true one.{numbered}",
        "cards": cards,
    }


@dataclass(frozen=True)
class _Seen:
    """Samples with their predictions and labels."""

    indices: Tensor
    predictions: Mapping[str, Prediction]
    truth: Mapping[str, Tensor]


def _predict(network: TrainedModel, indices: Tensor) -> _Seen:
    problem, size = network.problem, int(network.run.config.recipe["batch_size"])
    parts = [network.predict(problem.evaluation_batch("test", i)) for i in indices.split(size)]
    labels = [problem.truth("test", i) for i in indices.split(size)]
    if not labels[0]:
        raise ValueError(
            f"no gallery of {problem.name}: the problem does not say its labels "
            "(its method `truth` returns none)"
        )
    return _Seen(
        indices,
        {task: joined([part[task] for part in parts]) for task in parts[0]},
        {task: torch.cat([part[task] for part in labels]) for task in labels[0]},
    )


# ------------------------------------------------------------------------------------------------
# Numbers and classes


def _worst_cards(network: TrainedModel, seen: _Seen) -> list[dict[str, Any]]:
    tasks = [task for task in seen.predictions if task in seen.truth]
    errors = torch.stack([_errors(seen.predictions[t], seen.truth[t]) for t in tasks], dim=1)
    order = errors.nanmean(dim=1).nan_to_num(-1.0).argsort(descending=True)[:_WORST]
    units = {metric.task: metric.unit for metric in network.run.config.metrics}
    cards = []
    for place in order.tolist():
        sample = network.problem.sample("test", int(seen.indices[place]))
        worst = errors[place].nan_to_num(-1.0).argsort(descending=True)[:_TASKS].tolist()
        lines = [
            _line(tasks[t], seen.predictions[tasks[t]], seen.truth[tasks[t]], place, units)
            for t in worst
            if not math.isnan(float(errors[place, t]))
        ]
        cards.append({"name": printable(sample.name), "pictures": _seen(sample), "lines": lines})
    return cards


def _errors(said: Prediction, truth: Tensor) -> Tensor:
    """Return how far off each prediction is, NaN where the label is missing, shape (b,)."""
    if said.classes:
        assert said.probabilities is not None
        chance = said.probabilities.gather(1, truth.clamp(min=0)[:, None]).squeeze(1).double()
        return torch.where(truth >= 0, 1 - chance, torch.nan)
    known = truth.double()[~truth.isnan()]
    spread = known.std(correction=0) if len(known) > 1 else torch.tensor(0.0)
    return (said.values.double() - truth.double()).abs() / (spread if spread > 0 else 1.0)


def _line(
    task: str, said: Prediction, truth: Tensor, place: int, units: Mapping[str, str]
) -> tuple[str, str, str]:
    """Return a task, its prediction and its label, as text."""
    if said.classes:
        assert said.probabilities is not None
        number = int(said.values[place])
        share = f"{100 * float(said.probabilities[place, number]):.0f} %"
        predicted = f"{printable(said.classes[number], 40)} ({share})"
        return printable(task), predicted, printable(said.classes[int(truth[place])], 40)
    unit = f" {printable(units.get(task, ''), 20)}".rstrip()
    found, wanted = float(said.values[place]), float(truth[place])
    if said.dates:
        predicted, label = date_texts([round(found * 86_400) / 86_400, wanted])  # to the second
        return printable(task), predicted, label
    return printable(task), f"{_number(found)}{unit}", f"{_number(wanted)}{unit}"


def _number(value: float) -> str:
    text = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return text.replace("-", "−")


def _seen(sample: Sample) -> list[tuple[str, str]]:
    """Return pictures of a sample as data URLs with captions, "" for the sample itself."""
    if sample.image is not None:
        return [(rgb_picture(_array(sample.image)), "")]
    if sample.atoms is not None:
        numbers, places = sample.atoms
        return [(molecule_picture(numbers.numpy(), _array(places)), "")]
    return []


def _array(values: Tensor) -> Array:
    return values.detach().double().numpy()


# ------------------------------------------------------------------------------------------------
# Pixels


def _frame_card(network: TrainedModel, seen: _Seen, place: int) -> dict[str, Any]:
    sample = network.problem.sample("test", int(seen.indices[place]))
    pictures = [(address, "image") for address, _ in _seen(sample)]
    for task, said in seen.predictions.items():
        truth = seen.truth[task][place]
        for what, values in (("predicted", said.values[place]), ("true", truth)):
            address = _pixels(values, truth, bool(said.classes))
            pictures.append((address, f"{printable(task, 30)}, {what}"))
    return {"name": printable(sample.name), "pictures": pictures, "lines": []}


def _pixels(values: Tensor, truth: Tensor, classes: bool) -> str:
    if classes:
        return class_picture(values.numpy())
    if values.ndim == 3 and values.shape[0] == 3:
        return normal_picture(_array(values))
    known = truth[~truth.isnan()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return value_picture(_array(values.squeeze(0) if values.ndim == 3 else values), low, high)


# ------------------------------------------------------------------------------------------------
# Pictures as data URLs

_WIDEST = 220
"""Pixels; larger pictures are thinned."""

_MISSING = (0.6, 0.6, 0.6)

# Atomic numbers of QM9, and colors as chemists draw them.
_COLORS = {1: "#b8bec6", 6: "#555c65", 7: "#2f6fd0", 8: "#d03a2f", 9: "#3f9d4d"}
_RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57}
_BONDED = 1.3
"""Two atoms are bonded if they are closer than this times the sum of their covalent radii."""


def rgb_picture(values: Array) -> str:
    """Return an image of shape (3, H, W), from 0 to 1."""
    return _png(np.moveaxis(values, 0, -1))


def class_picture(classes: NDArray[np.int64]) -> str:
    """Return a mask of shape (H, W): a color per class, gray where it is -1."""
    colors = _colormap("tab20")(classes % 20)[..., :3]
    colors[classes < 0] = _MISSING
    return _png(colors)


def value_picture(values: Array, low: float, high: float) -> str:
    """Return a map of shape (H, W): dark is ``low``, bright ``high``, gray NaN."""
    known = np.isfinite(values)
    scaled = np.where(known, (values - low) / (high - low if high > low else 1.0), 0.0)
    colors = _colormap("viridis")(np.clip(scaled, 0, 1))[..., :3]
    colors[~known] = _MISSING
    return _png(colors)


def normal_picture(normals: Array) -> str:
    """Return surface normals of shape (3, H, W): x, y, z as red, green, blue."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = normals / np.sqrt((normals**2).sum(0, keepdims=True))
    colors = np.moveaxis((unit + 1) / 2, 0, -1)
    colors[~np.isfinite(colors).all(-1)] = _MISSING
    return _png(colors)


def molecule_picture(numbers: NDArray[np.int64], places: Array) -> str:
    """Return a drawing of a molecule, seen from where it is widest.

    Args:
        numbers: Atomic numbers, shape (a,).
        places: In Angstrom, shape (a, 3).
    """
    centered = places - places.mean(0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    seen = centered @ axes.T
    flat, depth = seen[:, :2], seen[:, 2] if seen.shape[1] > 2 else np.zeros(len(seen))
    low = flat.min(0) - 0.9
    width, height = flat.max(0) + 0.9 - low
    radii = np.array([_RADII.get(int(number), 0.7) for number in numbers])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    bonded = np.argwhere(np.triu(apart < _BONDED * (radii[:, None] + radii[None]), 1))
    at = flat - low
    shapes = [
        f'<line x1="{at[i, 0]:.2f}" y1="{at[i, 1]:.2f}" x2="{at[j, 0]:.2f}" y2="{at[j, 1]:.2f}"/>'
        for i, j in bonded
    ]
    for i in np.argsort(depth):
        fill = _COLORS.get(int(numbers[i]), "#8a5ac2")
        shapes.append(
            f'<circle cx="{at[i, 0]:.2f}" cy="{at[i, 1]:.2f}" r="{0.25 + 0.25 * radii[i]:.2f}" '
            f'fill="{fill}"/>'
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.2f} {height:.2f}" '
        f'width="{30 * width:.0f}" height="{30 * height:.0f}" stroke="#8b949e" '
        f'stroke-width="0.14">{"".join(shapes)}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _png(colors: Array) -> str:
    """Return a picture of shape (H, W, 3), from 0 to 1, as PNG."""
    with imports_for("a gallery of pictures"):
        from matplotlib.image import imsave
    step = max(1, -(-colors.shape[1] // _WIDEST))
    buffer = io.BytesIO()
    imsave(buffer, np.clip(colors[::step, ::step], 0, 1), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _colormap(name: str) -> Any:
    with imports_for("a gallery of pictures"):
        import matplotlib as mpl
    return mpl.colormaps[name]
