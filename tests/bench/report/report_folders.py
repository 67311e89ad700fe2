"""Run folders with known numbers, written as ``docs/run-format.md`` says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = {
    "epochs": 4,
    "batch_size": 8,
    "learning_rate": 0.001,
    "minibatches": 4,
    "reduced": True,
    "description": "A recipe for tests.",
}
VERSIONS = {"python": "3.12.1", "torch": "2.6.0", "torchjd": "0.18.0", "ntkmtl": "0.1.0"}
METRICS = [
    {"name": "acc", "task": "seg", "unit": "%", "higher_is_better": True, "label": "accuracy"},
    {"name": "mae", "task": "depth", "unit": "m", "higher_is_better": False, "label": ""},
]

METHODS = (
    "ls",
    "si",
    "rlw",
    "dwa",
    "uw",
    "famo",
    "mgda",
    "pcgrad",
    "imtl-g",
    "ntkmtl",
    "ntkmtl-sr",
)
TARGETS: list[tuple[str, str, str, float]] = [
    ("mu", "μ", "D", 0.12),
    ("alpha", "α", "a₀³", 0.31),
    ("homo", "ϵ_HOMO", "meV", 73.6),
    ("lumo", "ϵ_LUMO", "meV", 53.2),
    ("r2", "⟨R²⟩", "a₀²", 5.9),
    ("zpve", "ZPVE", "meV", 13.2),
    ("u0", "U₀", "meV", 121.0),
    ("u", "U", "meV", 122.0),
    ("h", "H", "meV", 120.0),
    ("g", "G", "meV", 121.0),
    ("cv", "c_v", "cal/mol·K", 0.13),
]


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_run(
    root: Path,
    method: str,
    seed: int,
    test: list[float] | None,
    *,
    problem: str = "toy",
    metrics: list[dict[str, Any]] | None = None,
    task: str | None = None,
    seconds: float = 1.0,
    cpu_share: float | None = None,
    recipe: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    problem_options: dict[str, Any] | None = None,
    history: list[list[float]] | None = None,
    weights: np.ndarray | None = None,
    eigenvalues: np.ndarray | None = None,
    step: np.ndarray | None = None,
    folder: str | None = None,
) -> Path:
    """Write one run; ``test=None`` leaves it incomplete."""
    metrics = METRICS if metrics is None else metrics
    tasks = list(dict.fromkeys(metric["task"] for metric in metrics))
    place = root / (folder or problem) / method / f"seed-{seed}"
    if task is not None:
        place = place / task
        tasks = [task]
        metrics = [metric for metric in metrics if metric["task"] == task]
    write(
        place / "config.json",
        {
            "schema": 1,
            "problem": problem,
            "problem_options": problem_options or {},
            "method": method,
            "method_options": options or {},
            "seed": seed,
            "recipe": {**RECIPE, **(recipe or {})},
            "tasks": tasks,
            "metrics": metrics,
            "sizes": {"train": 1000, "val": 100, "test": 200},
            "parameters": 12345,
            "versions": {
                "python": "3.12.1",
                "torch": "2.6.0",
                "torchjd": "0.18.0",
                "ntkmtl": "0.1.0",
            },
            "hardware": {"device": "cpu", "processor": "A processor", "cores": 2, "threads": 1},
        },
    )
    if test is None:
        return place
    val = test if history is None else history[-1]
    epochs = [val] if history is None else history
    write(
        place / "history.json",
        {
            "epochs": [
                {
                    "epoch": number,
                    "train_losses": [1.0] * len(tasks),
                    "val": list(map(float, values)),
                    "learning_rate": 0.001,
                    "train_seconds": seconds,
                    "eval_seconds": 0.1,
                }
                for number, values in enumerate(epochs)
            ]
        },
    )
    if weights is None:
        weights = np.ones((10, len(tasks)))
    if step is None:
        step = np.arange(len(weights))
    arrays = {"step": step.astype(np.int64), "weights": weights.astype(np.float32)}
    if eigenvalues is not None:
        arrays["eigenvalues"] = eigenvalues.astype(np.float32)
    np.savez_compressed(place / "steps.npz", allow_pickle=False, **arrays)
    write(
        place / "result.json",
        {
            "schema": 1,
            "test": list(map(float, test)),
            "val": list(map(float, val)),
            "seconds_per_epoch": seconds,
            "train_seconds": seconds * len(epochs),
            "wall_seconds": seconds * len(epochs) + 0.5,
            "steps": int(step[-1]) + 1,
            **({} if cpu_share is None else {"cpu_share": cpu_share}),
            "finished": f"2025-01-0{1 + seed % 9}T12:00:00+00:00",
        },
    )
    return place


def toy(root: Path) -> Path:
    """Write the comparison that the tests' golden numbers are worked out from."""
    for seed, accuracy, error in ((0, 50.0, 0.20), (1, 50.0, 0.20)):
        write_run(root, "stl", seed, [accuracy], task="seg", seconds=0.75)
        write_run(root, "stl", seed, [error], task="depth", seconds=0.75)
    for seed, test, seconds in ((0, [45.0, 0.20], 1.0), (1, [55.0, 0.30], 2.0)):
        write_run(root, "ls", seed, test, seconds=seconds)
    for seed, test, seconds in ((0, [60.0, 0.22], 3.0), (1, [60.0, 0.26], 3.0)):
        write_run(root, "ntkmtl", seed, test, seconds=seconds)
    for seed in (0, 1):
        write_run(root, "uw", seed, [40.0, 0.10], seconds=1.2)
    write(root / "compare.json", {"problem": "toy", "methods": ["stl", "uw", "ls"], "seeds": 2})
    return root


def realistic(
    root: Path,
    *,
    methods: list[str] | None = None,
    seeds: int = 3,
    tasks: list[str] | None = None,
    steps: int = 600,
    epochs: int = 30,
    problem: str = "qm9-mini",
    stl: bool = True,
) -> Path:
    """Write a comparison that looks like a real one."""
    methods = methods or list(METHODS)
    names = tasks or [name for name, *_ in TARGETS]
    known = {name: rest for name, *rest in TARGETS}
    metrics = [
        {
            "name": name,
            "task": name,
            "label": known.get(name, ["", "", 1.0])[0],
            "unit": known.get(name, ["", "", 1.0])[1],
            "higher_is_better": False,
        }
        for name in names
    ]
    rng = np.random.default_rng(7)
    epoch = np.arange(epochs)[:, None]
    base = np.array([known.get(name, ["", "", 1.0])[2] for name in names])
    recipe = {"epochs": epochs, "batch_size": 120, "description": "Trained for seconds."}
    k = len(names)
    time = np.linspace(0, 1, steps)[:, None]
    speeds = np.logspace(-1, 2, k)[rng.permutation(k)]
    for index, method in enumerate(methods):
        quality = np.exp(rng.normal(0.35 - 0.04 * min(index, 12), 0.15, k))
        for seed in range(seeds):
            noise = np.exp(rng.normal(0, 0.02, (epochs, k)))
            decay = 1 + 4 * np.exp(-epoch / rng.uniform(3, 7, k))
            history = base * quality * decay * noise
            weights = np.exp(
                0.3 * np.cumsum(rng.normal(0, 1, (steps, k)), axis=0) / np.sqrt(steps)
                + (0 if method == "ls" else 1) * rng.normal(0, 1, k)
                + 0.05 * rng.normal(size=(steps, k))
            )
            eigenvalues = None
            if method.startswith("ntkmtl"):
                eigenvalues = speeds * np.exp(-2 * time + 0.2 * rng.normal(size=(steps, k)))
                eigenvalues[1::2] = np.nan
                weights = (eigenvalues[::2].mean(1, keepdims=True) / eigenvalues[::2]) ** 0.5
                weights = np.repeat(weights, 2, axis=0)[:steps]
            if method == "ls":
                weights = np.ones((steps, k))
            if method == "mgda":
                weights = np.maximum(weights / weights.sum(1, keepdims=True) - 0.03, 0)
            write_run(
                root, method, seed, list(history[-1] * np.exp(rng.normal(0, 0.02, k))),
                problem=problem, metrics=metrics, history=history.tolist(), weights=weights,
                eigenvalues=eigenvalues,
                seconds=2.1 * (1 + 0.35 * index * (method in ("mgda", "pcgrad", "ntkmtl")) / 3)
                * (1 + 0.01 * rng.random()),
                recipe=recipe,
            )  # fmt: skip
    if stl:
        for seed in range(seeds):
            for index, name in enumerate(names):
                curve = base[index] * (1 + 4 * np.exp(-epoch / 5)) * 0.95
                write_run(
                    root, "stl", seed, [float(curve[-1, 0])], problem=problem, metrics=metrics,
                    task=name, history=curve.tolist(), seconds=1.3, weights=np.ones((steps, 1)),
                    recipe=recipe,
                )  # fmt: skip
    write(root / "compare.json", {"problem": problem, "methods": ["stl", *methods]})
    return root
