"""Measure what `docs/analysis/theory.md` shows, draw its pictures and fill in its tables.

    python scripts/make_theory_figures.py

Prints the numbers as JSON. `--quick` runs narrow networks and a few steps, to see that it works,
and leaves the page alone.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from torch import Tensor

from ntkmtl.analysis import (
    Conditioning,
    Simulation,
    WideMLP,
    component_steps,
    components,
    predict_descent,
    predict_flow,
    prediction_error,
    simulate,
    task_losses,
    weighting_effect,
)
from ntkmtl.bench.report.figures import (
    COLORS,
    INK,
    MUTED,
    STYLE,
    write_figure,
)
from ntkmtl.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
SAMPLES = 12
TOLERANCE = 0.01
SHARE = 0.05
"""Of the critical learning rate, where steps are counted: enough of them to tell tasks apart."""


def circle() -> tuple[Tensor, Tensor]:
    """Return points on the unit circle, shape (N, 2), and their angles."""
    angle = torch.arange(SAMPLES, dtype=torch.float64) * 2 * math.pi / SAMPLES
    return torch.stack([angle.cos(), angle.sin()], 1), angle


def low(angle: Tensor) -> Tensor:
    return angle.cos() + 0.5 * (angle + 0.7).sin() + 0.3


def panels(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for place in axes:
        place.grid(axis="y")
    return figure, list(axes)


def caption(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9.5, color=MUTED)


def spaced(steps: int, points: int = 60) -> list[int]:
    """Return steps from 0, evenly spaced in their logarithm."""
    return sorted({0, *(round(math.exp(i / points * math.log(steps))) for i in range(points + 1))})


def fit(widths: list[int], errors: Tensor) -> tuple[float, float, float]:
    """Fit log error = a + slope log width over all seeds; return slope, its error, and a."""
    x = torch.tensor(widths, dtype=torch.float64).log()[:, None].expand_as(errors).flatten()
    y = errors.log().flatten()
    centered = x - x.mean()
    slope = float(centered @ y / centered.square().sum())
    intercept = float(y.mean()) - slope * float(x.mean())
    left = y - intercept - slope * x
    spread = float((left.square().sum() / (len(x) - 2) / centered.square().sum()).sqrt())
    return slope, spread, intercept


def draw_losses(widths: list[int], steps: int, folder: Path) -> list[dict[str, Any]]:
    """Predicted and measured losses of two tasks at two widths."""
    x, angle = circle()
    y = torch.stack([2 * low(angle), low(angle) + 0.5 * (3 * angle).sin()])
    figure, axes = panels(len(widths), 7.6, 3.3)
    rows = []
    for place, width in zip(axes, widths, strict=True):
        model = WideMLP(2, width, depth=2, tasks=2, scales=[2.0, 1.0], seed=0)
        run = simulate(model, x, y, steps=steps, reduction="mean", record=spaced(steps))
        measured = run.losses()
        predicted = task_losses(run.predicted(), run.targets, reduction="mean")
        for task, name in enumerate(("task 1", "task 2")):
            color = COLORS[task]
            place.plot(run.steps, measured[:, task], color=color, lw=2.4, alpha=0.45, label=name)
            place.plot(run.steps, predicted[:, task], color=color, lw=1.1, ls="--")
        place.set_xscale("symlog", linthresh=1)
        place.set_yscale("log")
        place.set_xlim(0, steps)
        place.set_ylim(1e-4, 30)
        place.set_xlabel("Step")
        caption(place, f"width {width}: output error {100 * run.error():.2g} %")
        rows.append(
            {
                "width": width,
                "error": run.error(),
                "error_flow": run.error(flow=True),
                "kernel_drift": run.kernel_drift,
                "steps": steps,
                "loss_measured": measured[-1].tolist(),
                "loss_predicted": predicted[-1].tolist(),
            }
        )
    axes[0].set_ylabel("Mean squared error")
    axes[0].plot([], [], color=INK, lw=2.4, alpha=0.45, label="measured")
    axes[0].plot([], [], color=INK, lw=1.1, ls="--", label="predicted")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    write_figure(figure, folder / "theory-losses.png", "png")
    return rows


def draw_width(widths: list[int], seeds: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Error of the prediction, and drift of the kernel, against the width."""
    x, angle = circle()
    y = torch.stack([2 * low(angle), low(angle) + 0.5 * (3 * angle).sin()])
    figure, axes = panels(1, 5.2, 3.5)
    rows = []
    for index, (parametrization, depth) in enumerate(
        (("ntk", 1), ("ntk", 2), ("standard", 1), ("standard", 2))
    ):
        errors, drifts = torch.zeros(2, len(widths), seeds, dtype=torch.float64)
        for i, width in enumerate(widths):
            for seed in range(seeds):
                model = WideMLP(
                    2,
                    width,
                    depth=depth,
                    tasks=2,
                    scales=[2.0, 1.0],
                    parametrization=parametrization,
                    seed=seed,
                )
                run = simulate(model, x, y, steps=steps, reduction="mean", record=spaced(steps))
                errors[i, seed], drifts[i, seed] = run.error(), run.kernel_drift
        slope, spread, intercept = fit(widths, errors)
        rows.append(
            {
                "parametrization": parametrization,
                "depth": depth,
                "widths": widths,
                "seeds": seeds,
                "steps": steps,
                "error": errors.log().mean(1).exp().tolist(),
                "kernel_drift": drifts.log().mean(1).exp().tolist(),
                "slope": slope,
                "slope_stderr": spread,
                "drift_slope": fit(widths, drifts)[0],
            }
        )
        color = COLORS[index]
        for seed in range(seeds):
            axes[0].plot(widths, errors[:, seed], ".", color=color, ms=4, alpha=0.5)
        line = [math.exp(intercept) * width**slope for width in widths]
        layers = f"{depth} hidden layer{'s' if depth > 1 else ''}"
        label = f"{parametrization}, {layers}: slope {slope:.2f}"
        axes[0].plot(widths, line, color=color, lw=1.4, label=label)
    bound = [0.03 * (width / widths[0]) ** -0.5 for width in widths]
    axes[0].plot(widths, bound, color=MUTED, lw=1, ls=":", label="slope -1/2, to compare")
    axes[0].set_xscale("log", base=2)
    axes[0].set_yscale("log")
    axes[0].set_xlabel("Width")
    axes[0].set_ylabel("Largest error of the outputs, relative")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    caption(axes[0], f"{seeds} seeds, {steps} steps of gradient descent")
    write_figure(figure, folder / "theory-width.png", "png")
    return rows


def draw_components(width: int, steps: int, folder: Path) -> dict[str, Any]:
    """Measured eigencomponents against both closed forms."""
    x, angle = circle()
    y = torch.stack([2 * low(angle), low(angle) + 0.5 * (3 * angle).sin()])
    weights = torch.tensor([0.5, 1.0], dtype=torch.float64)
    model = WideMLP(2, width, depth=2, tasks=2, scales=[2.0, 1.0], seed=0)
    run = simulate(
        model, x, y, steps=steps, weights=weights, reduction="mean", record=spaced(steps)
    )
    found = components(run.kernel, run.outputs, run.targets, weights=weights)
    forms = [
        components(run.kernel, run.predicted(flow=flow), run.targets, weights=weights).values
        for flow in (False, True)
    ]
    waits = component_steps(
        run.kernel,
        learning_rate=run.learning_rate,
        tolerance=TOLERANCE,
        weights=weights,
        reduction="mean",
    )
    # Components that the targets do hold, spread over the spectrum.
    order = found.values[0].abs().argsort(descending=True)[:10]
    order = order.sort(descending=True).values
    chosen = order[torch.linspace(0, len(order) - 1, 5).round().long()].tolist()
    figure, axes = panels(1, 5.6, 3.6)
    rows = []
    for index, component in enumerate(chosen):
        start, color = found.values[0, component], COLORS[index]
        rate = float(run.learning_rate * 2 / SAMPLES * found.eigenvalues[component])
        shares = (found.values[:, component] / start).abs()
        axes[0].plot(run.steps, shares, ".", color=color, ms=5, label=f"rate {rate:.2g}")
        axes[0].plot(run.steps, (forms[0][:, component] / start).abs(), color=color, lw=1.2)
        axes[0].plot(run.steps, (forms[1][:, component] / start).abs(), color=color, lw=0.9, ls=":")
        done = (shares**2 <= TOLERANCE).nonzero()
        rows.append(
            {
                "eigenvalue": float(found.eigenvalues[component]),
                "rate": rate,
                "steps_predicted": finite(waits[component]),
                # Recorded steps are some 15 % apart; infinity is not JSON.
                "step_recorded_at_or_below": int(run.steps[done[0, 0]]) if len(done) else None,
            }
        )
    axes[0].plot([], [], ".", color=INK, label="measured")
    axes[0].plot([], [], color=INK, lw=1.2, label="descent, (1 - rate)$^t$")
    axes[0].plot([], [], color=INK, lw=0.9, ls=":", label="flow, exp(-rate t)")
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set_yscale("log")
    axes[0].set_xlim(0, steps)
    axes[0].set_ylim(3e-4, 2)
    axes[0].set_xlabel("Step")
    axes[0].set_ylabel("Share of the component left")
    axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption(axes[0], f"width {width}, weights 0.5 and 1, {2 * SAMPLES} components")
    write_figure(figure, folder / "theory-components.png", "png")
    distance = (found.values - forms[0]).abs().max() / found.values[0].norm()
    return {"width": width, "steps": steps, "largest_error": float(distance), "components": rows}


def finite(value: Tensor) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def measured_steps(run: Simulation) -> list[int | None]:
    """Return the step from which each task's loss stays at or below its share, every one known."""
    losses = run.losses()
    found: list[int | None] = []
    for task in range(losses.shape[1]):
        above = (losses[:, task] > TOLERANCE * losses[0, task]).nonzero()
        last = int(above[-1, 0])
        found.append(last + 1 if last + 1 < len(losses) else None)
    return found


def at_a_share(
    kernel: Tensor, initial: Tensor, targets: Tensor, weights: Tensor | None, exponent: float
) -> Conditioning:
    """Return the weighted problem at SHARE of its own critical learning rate."""

    def effect(learning_rate: float | None) -> Conditioning:
        return weighting_effect(
            kernel,
            initial,
            targets,
            weights=weights,
            exponent=exponent,
            learning_rate=learning_rate,
            tolerance=TOLERANCE,
            reduction="mean",
        ).after

    return effect(SHARE * effect(None).critical_learning_rate)


def draw_weighting(width: int, limit: int, folder: Path) -> list[dict[str, Any]]:
    """Tasks that differ in scale and in frequency; without weights, Eq. 15, exponent 1.

    Targets are set off from the outputs at the start, so that the residuals are these functions.
    """
    x, angle = circle()
    names = ("fast", "small outputs", "high frequency")
    model = WideMLP(2, width, depth=2, tasks=3, scales=[5.0, 1.0, 5.0], seed=0)
    initial = model(x).detach()
    y = initial + torch.stack([5 * low(angle), low(angle), 5 * (3 * angle).cos()])
    kernel = simulate(model, x, y, steps=1, learning_rate=1e-9).kernel
    figure, axes = panels(3, 9.0, 3.3)
    rows = []
    for place, (title, exponent) in zip(
        axes, (("weights 1", 0.0), ("Eq. 15, exponent 1/2", 0.5), ("exponent 1", 1.0)), strict=True
    ):
        effect = at_a_share(kernel, initial, y, None, exponent)
        slowest = float(effect.task_steps.max())
        steps = limit if not math.isfinite(slowest) else min(limit, math.ceil(1.2 * slowest) + 10)
        run = simulate(
            model,
            x,
            y,
            steps=steps,
            learning_rate=effect.learning_rate,
            weights=effect.weights,
            reduction="mean",
        )
        measured = run.losses()
        marks = torch.tensor(spaced(steps, 40))
        options: dict[str, Any] = {
            "learning_rate": run.learning_rate,
            "weights": run.weights,
            "reduction": "mean",
        }
        outputs = predict_descent(kernel, initial, y, marks, **options)
        predicted = task_losses(outputs, y, reduction="mean")
        for task, name in enumerate(names):
            color, start = COLORS[task], measured[0, task]
            place.plot(
                run.steps, measured[:, task] / start, color=color, lw=2.4, alpha=0.45, label=name
            )
            place.plot(marks, predicted[:, task] / start, color=color, lw=1.1, ls="--")
        place.axhline(TOLERANCE, color=MUTED, lw=0.8, ls=":")
        place.set_xscale("symlog", linthresh=1)
        place.set_yscale("log")
        place.set_xlim(0, 1000)
        place.set_ylim(1e-4, 2)
        place.set_xlabel("Step")
        caption(place, title)
        # The kernel's prediction of what Prop. 3.3 as printed would do: w_i w_j K_ij on residuals.
        w = effect.weights[:, None]
        printed = predict_descent(
            w[:, :, None, None] * kernel * w[None, None],
            initial,
            y,
            run.steps,
            learning_rate=run.learning_rate,
            reduction="mean",
        )
        rows.append(
            {
                "weighting": title,
                "width": width,
                "weights": effect.weights.tolist(),
                "w_lambda": effect.block_eigenvalues.tolist(),
                "w2_lambda": effect.proposition_eigenvalues.tolist(),
                "condition_number": effect.condition_number,
                "learning_rate": run.learning_rate,
                "steps_run": steps,
                "steps_predicted": [finite(value) for value in effect.task_steps],
                "steps_measured": measured_steps(run),
                "error": run.error(),
                "error_of_eq_13_to_the_letter": prediction_error(printed, run.outputs, y),
            }
        )
    axes[0].set_ylabel("Loss, share of its start")
    axes[0].plot([], [], color=INK, lw=2.4, alpha=0.45, label="measured")
    axes[0].plot([], [], color=INK, lw=1.1, ls="--", label="predicted")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    write_figure(figure, folder / "theory-weighting.png", "png")
    return rows


def cross_blocks(width: int, limit: int) -> list[dict[str, Any]]:
    """Tasks with like heads: targets that agree, and targets that do not."""
    x, angle = circle()
    rows = []
    for correlation in (0.0, 0.9):
        for name, sign in (("agree", 1.0), ("disagree", -1.0)):
            model = WideMLP(2, width, depth=2, tasks=2, head_correlation=correlation, seed=0)
            initial = model(x).detach()
            y = initial + torch.stack([low(angle), sign * low(angle)])
            kernel = simulate(model, x, y, steps=1, learning_rate=1e-9).kernel
            effect = at_a_share(kernel, initial, y, torch.ones(2), 0.0)
            slowest = float(effect.task_steps.max())
            steps = min(limit, math.ceil(1.2 * slowest) + 10 if math.isfinite(slowest) else limit)
            run = simulate(
                model, x, y, steps=steps, learning_rate=effect.learning_rate, reduction="mean"
            )
            rows.append(
                {
                    "head_correlation": correlation,
                    "targets": name,
                    "width": width,
                    "condition_number": effect.condition_number,
                    "steps_predicted": [finite(value) for value in effect.task_steps],
                    "steps_without_blocks": [finite(value) for value in effect.task_steps_alone],
                    "steps_measured": measured_steps(run),
                }
            )
    return rows


def flow_against_descent() -> list[dict[str, Any]]:
    """How far gradient flow is from descent, by the learning rate's share of the critical one."""
    x, angle = circle()
    y = low(angle)[None]
    rows = []
    for share in (0.01, 0.1, 0.5, 0.9):
        model = WideMLP(2, 1024, seed=0)
        kernel = simulate(model, x, y, steps=1, learning_rate=1e-9).kernel
        initial = model(x).detach()
        eta = share * 2 / float(torch.linalg.eigvalsh(kernel.reshape(SAMPLES, SAMPLES))[-1])
        steps = range(2000)
        descent = predict_descent(kernel, initial, y, steps, learning_rate=eta)
        flow = predict_flow(kernel, initial, y, steps, learning_rate=eta)
        rows.append({"share": share, "distance": prediction_error(flow, descent, y)})
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def three(values: list[float] | list[float | None] | list[int | None]) -> str:
    return ", ".join("never" if value is None else f"{value:,.4g}" for value in values)


def whole(values: list[float | None] | list[int | None]) -> str:
    return ", ".join("never" if value is None else f"{value:,.0f}" for value in values)


def letter(error: float) -> str:
    return f"{error:.4f}" if error < 10 else "diverges"


def tables(numbers: dict[str, Any]) -> dict[str, str]:
    """Return the text of every measured block of the page."""
    return {
        "when": f"Measured on {numbers['date']} with 1 thread on a machine of 2 CPU cores, in "
        f"float64, in {numbers['seconds'] / 60:.0f} minutes.",
        "losses": table(
            ["width", "error", "error of flow", "kernel's drift", "last loss", "predicted"],
            [
                [
                    f"{row['width']:,}",
                    f"{row['error']:.4f}",
                    f"{row['error_flow']:.4f}",
                    f"{row['kernel_drift']:.4f}",
                    ", ".join(f"{value:.2g}" for value in row["loss_measured"]),
                    ", ".join(f"{value:.2g}" for value in row["loss_predicted"]),
                ]
                for row in numbers["losses"]
            ],
        ),
        "width": table(
            ["network", *(f"{width:,}" for width in numbers["width"][0]["widths"]), "slope"],
            [
                [
                    f"{row['parametrization']}, {row['depth']} hidden, {name}",
                    *(f"{value:.2g}" for value in row[key]),
                    slope,
                ]
                for row in numbers["width"]
                for name, key, slope in (
                    ("error", "error", f"{row['slope']:.2f} ± {row['slope_stderr']:.2f}"),
                    ("drift", "kernel_drift", f"{row['drift_slope']:.2f}"),
                )
            ],
        ),
        "weighting": table(
            ["weighting", "weights", "w λ", "w² λ", "condition", "steps predicted", "measured"],
            [
                [
                    row["weighting"],
                    three(row["weights"]),
                    three(row["w_lambda"]),
                    three(row["w2_lambda"]),
                    f"{row['condition_number']:,.0f}",
                    whole(row["steps_predicted"]),
                    whole(row["steps_measured"]),
                ]
                for row in numbers["weighting"]
            ],
        ),
        "letter": table(
            ["weighting", "error of K W", "error of w w^T ⊙ K"],
            [
                [
                    row["weighting"],
                    f"{row['error']:.4f}",
                    letter(row["error_of_eq_13_to_the_letter"]),
                ]
                for row in numbers["weighting"]
            ],
        ),
        "cross": table(
            ["heads' correlation", "targets", "condition", "predicted", "alone", "measured"],
            [
                [
                    f"{row['head_correlation']:g}",
                    row["targets"],
                    f"{row['condition_number']:,.0f}",
                    whole(row["steps_predicted"]),
                    whole(row["steps_without_blocks"]),
                    whole(row["steps_measured"]),
                ]
                for row in numbers["cross"]
            ],
        ),
        "flow": table(
            ["learning rate / critical", *(f"{row['share']:g}" for row in numbers["flow"])],
            [["distance of flow and descent", *(f"{r['distance']:.3f}" for r in numbers["flow"])]],
        ),
        "components": table(
            ["eigenvalue", "rate", "steps to 1 % of its loss", "recorded at or below"],
            [
                [
                    f"{row['eigenvalue']:.3g}",
                    f"{row['rate']:.2g}",
                    whole([row["steps_predicted"]]),
                    whole([row["step_recorded_at_or_below"]]),
                ]
                for row in numbers["components"]["components"]
            ],
        ),
    }


def fill(page: Path, blocks: dict[str, str]) -> None:
    """Put each block between its marks on the page."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        begin, end = f"<!-- measured {name}: begin -->", f"<!-- measured {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page.name} must hold {begin} and {end} once each")
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        filled = f"{begin}\n\n{block}\n\n{end}"
        text = re.sub(pattern, lambda _, new=filled: new, text, flags=re.DOTALL)  # type: ignore[misc]
    write_text(page, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    quick, folder = arguments.quick, arguments.out
    with mpl.rc_context(STYLE):
        numbers: dict[str, Any] = {
            "losses": draw_losses([32, 128] if quick else [32, 1024], 300, folder),
            "width": draw_width(
                [32, 64] if quick else [32, 64, 128, 256, 512, 1024],
                2 if quick else 5,
                50 if quick else 200,
                folder,
            ),
            "components": draw_components(128 if quick else 1024, 1000, folder),
            "weighting": draw_weighting(128 if quick else 1024, 3000, folder),
            "cross": cross_blocks(128 if quick else 1024, 3000),
            "flow": flow_against_descent(),
        }
    numbers["seconds"] = time.monotonic() - began
    numbers["date"] = date.today().isoformat()
    numbers["machine"] = "2 CPU cores, 1 thread, float64"
    numbers["torch"] = torch.__version__
    write_json(folder / "theory-numbers.json", numbers)
    if not quick:
        fill(ROOT / "docs" / "analysis" / "theory.md", tables(numbers))
    print(json.dumps(numbers, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
