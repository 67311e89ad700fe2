"""Recorded training of wide networks: the wider, the closer to the predictions."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from linear_model import EXACT, F64
from torch import Tensor

from ntkmtl.analysis import (
    WideMLP,
    components,
    critical_learning_rate,
    predict_descent,
    prediction_error,
    simulate,
)


def circle(n: int = 6) -> tuple[Tensor, Tensor]:
    """Points on a circle and two functions of the angle."""
    angle = torch.arange(n, dtype=F64) * 2 * math.pi / n
    x = torch.stack([angle.cos(), angle.sin()], 1)
    return x, torch.stack([angle.cos() + 0.3, (angle + 0.5).cos() + 0.5 * (2 * angle).sin()])


TWO = torch.tensor([1.0, 0.4], dtype=F64)


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_error_falls_as_the_width_grows(parametrization: str) -> None:
    """Theory bounds it by width ** -1/2; this is a fit over seeds, so the bound has some slack."""
    x, y = circle()
    widths = [64, 128, 256, 512, 1024]
    means = []
    for width in widths:
        logs = []
        for seed in range(4):
            model = WideMLP(2, width, tasks=2, parametrization=parametrization, seed=seed)
            run = simulate(
                model, x, y, steps=100, weights=TWO, record=range(0, 101, 5), reduction="mean"
            )
            assert (run.losses()[-1] / run.losses()[0]).max() < 0.1  # It did learn.
            logs.append(math.log(run.error()))
        means.append(sum(logs) / len(logs))
    centered = torch.tensor(widths, dtype=F64).log()
    centered = centered - centered.mean()
    slope = float(centered @ torch.tensor(means, dtype=F64) / centered.square().sum())
    assert slope < -0.45
    assert math.exp(means[-1]) < 0.005


def wide_run(**options: object) -> tuple[Tensor, Tensor, float, Tensor]:
    x, y = circle()
    model = WideMLP(2, 1024, tasks=2, scales=[2.0, 1.0], head_correlation=0.6, seed=3)
    run = simulate(model, x, y, steps=100, weights=TWO, reduction="mean", **options)  # type: ignore[arg-type]
    return run.kernel, run.targets, run.learning_rate, run.outputs


def test_weights_enter_a_wide_network_as_derived() -> None:
    kernel, targets, eta, outputs = wide_run()
    steps = range(len(outputs))

    def error(weights: Tensor | None, reduction: str = "mean", scale: float = 1.0) -> float:
        predicted = predict_descent(
            kernel,
            outputs[0],
            targets,
            steps,
            learning_rate=eta * scale,
            weights=weights,
            reduction=reduction,
        )
        return prediction_error(predicted, outputs, targets)

    right = error(TWO)
    assert right < 0.002
    wrong = {
        "dropped": error(None),
        "squared": error(TWO.square()),
        "rooted": error(TWO.sqrt()),
        "swapped": error(TWO.flip(0)),
        "half the factor": error(TWO, scale=0.5),
    }
    assert min(wrong.values()) > 0.05, wrong
    assert not error(TWO, reduction="sum") < 0.05  # It diverges.


def test_components_of_a_wide_network_decay_at_their_rates() -> None:
    kernel, targets, eta, outputs = wide_run()
    found = components(kernel, outputs, targets, weights=TWO)
    steps = torch.arange(len(outputs), dtype=F64)[:, None]
    expected = (1 - eta * 2 / 6 * found.eigenvalues) ** steps * found.values[0]
    scale = found.values[0].norm()
    assert float((found.values - expected).abs().max() / scale) < 0.01
    # Every other component's rate is far from each one's own: shifted by one, the check fails.
    shifted = (1 - eta * 2 / 6 * found.eigenvalues.roll(1)) ** steps * found.values[0]
    assert float((found.values - shifted).abs().max() / scale) > 0.1


def test_simulation_is_descent_written_out() -> None:
    """Against a loop over .backward() and the parameters themselves, and row-by-row Jacobians."""
    x, y = circle()
    model = WideMLP(2, 5, depth=2, tasks=2, activation="erf", scales=[1.0, 3.0], seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = simulate(
        model, x, y, steps=7, learning_rate=0.02, weights=TWO, reduction="mean", record=[3]
    )
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert run.steps.tolist() == [0, 3, 7]

    rows = []
    for value in model(x).flatten():
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    J = torch.stack(rows)
    torch.testing.assert_close(run.kernel.reshape(12, 12), J @ J.T, **EXACT)

    outputs = []
    for _ in range(8):
        found = model(x)
        outputs.append(found.detach())
        model.zero_grad()
        sum(w * ((f - t) ** 2).mean() for w, f, t in zip(TWO, found, y, strict=True)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.02 * p.grad
    torch.testing.assert_close(run.outputs, torch.stack(outputs)[[0, 3, 7]], **EXACT)
    torch.testing.assert_close(
        run.losses()[2], ((outputs[7] - y) ** 2).mean(1), rtol=1e-9, atol=0.0
    )
    assert run.kernel_drift > 1e-3  # Five units are not wide.
    assert 0.01 < run.error() < 1


def test_wide_mlp_is_one_function_in_both_parametrizations() -> None:
    x, y = circle()
    ntk, standard = (
        WideMLP(2, 40, depth=2, tasks=2, parametrization=name, seed=5)
        for name in ("ntk", "standard")
    )
    torch.testing.assert_close(ntk(x), standard(x), **EXACT)
    # The heads' kernel grows with the width only where their weights are not divided by its root.
    tops = [
        critical_learning_rate(
            simulate(
                WideMLP(2, width, parametrization=name), x, y[:1], steps=1, learning_rate=1e-6
            ).kernel
        )
        for name in ("ntk", "standard")
        for width in (200, 800)
    ]
    assert tops[0] / tops[1] == pytest.approx(1, rel=0.2)
    assert tops[2] / tops[3] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_heads_are_standard_normal_with_the_given_correlation(correlation: float) -> None:
    weights = WideMLP(2, 20_000, tasks=2, head_correlation=correlation).layers[2].detach()
    expected = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=F64)
    torch.testing.assert_close(weights @ weights.T / 20_000, expected, rtol=0.0, atol=0.03)


def test_blocks_between_independent_heads_vanish_with_width() -> None:
    x, y = circle()

    def cross(width: int, correlation: float) -> float:
        model = WideMLP(2, width, tasks=2, head_correlation=correlation, scales=[3.0, 1.0])
        kernel = simulate(model, x, y, steps=1, learning_rate=1e-6).kernel
        ratio = kernel[0, :, 0].trace() / kernel[1, :, 1].trace()
        assert float(ratio) == pytest.approx(9, rel=0.3)
        return float(
            kernel[0, :, 1].norm() / (kernel[0, :, 0].norm() * kernel[1, :, 1].norm()).sqrt()
        )

    assert cross(4096, 0.0) < 0.05 < 0.2 < cross(4096, 0.9)


def test_bad_simulations_are_named() -> None:
    x, y = circle()
    model = WideMLP(2, 8, tasks=2)
    with pytest.raises(TypeError, match=r"inputs must be float64, found torch\.float32"):
        simulate(model, x.float(), y, steps=1)
    with pytest.raises(ValueError, match=r"found \(2, 6\) and \(1, 6\)"):
        simulate(model, x, y[:1], steps=1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        simulate(model, x, y, steps=0)
    with pytest.raises(ValueError, match="record must be steps from 0 to 3"):
        simulate(model, x, y, steps=3, record=[4])
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        simulate(model, x, y, steps=3, learning_rate=-1)
    relu = WideMLP(2, 8, tasks=2, activation="relu")  # Tanh would only saturate.
    with pytest.raises(FloatingPointError, match=r"the critical rate at the start was"):
        simulate(relu, x, y, steps=3000, learning_rate=1e3)
    for options, match in (
        ({"width": 0}, "at least 1"),
        ({"activation": "sine"}, "tanh, relu, erf"),
        ({"parametrization": "mup"}, "'ntk' or 'standard'"),
        ({"head_correlation": 1.5}, "in \\[0, 1\\]"),
        ({"scales": [1.0]}, "scales must be 2 numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            WideMLP(**{"inputs": 2, "width": 8, "tasks": 2, **options})  # type: ignore[arg-type]


def test_the_page_shows_the_numbers_that_were_measured() -> None:
    root = Path(__file__).parents[2]
    path = root / "scripts" / "make_theory_figures.py"
    spec = importlib.util.spec_from_file_location("make_theory_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = root / "docs" / "images"
    numbers = json.loads((folder / "theory-numbers.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "analysis" / "theory.md").read_text(encoding="utf-8")
    for name, block in module.tables(numbers).items():
        begin, end = (f"<!-- measured {name}: {side} -->" for side in ("begin", "end"))
        assert page.partition(begin)[2].partition(end)[0].strip() == block
    # What the page says of them in words.
    assert all(row["slope"] < -0.5 for row in numbers["width"])
    for row in numbers["weighting"]:
        for predicted, measured in zip(row["steps_predicted"], row["steps_measured"], strict=True):
            assert predicted == pytest.approx(measured, rel=0.02, abs=1)
    for picture in ("losses", "width", "components", "weighting"):
        assert (folder / f"theory-{picture}.png").stat().st_size > 10_000
