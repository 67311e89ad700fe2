"""What the paper trained with, and what differs in runs here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BY_CODE = "†"
BY_CODE_SAID = f"{BY_CODE} by the published code; the paper does not say"


@dataclass(frozen=True)
class Published:
    """One published setting.

    Attributes:
        value: As :func:`settings` says it.
        said: Whether the paper says so; else it is what the code does that the paper builds on.
    """

    value: Any
    said: bool = True


def _code(value: Any) -> Published:
    return Published(value, said=False)


_DENSE: dict[str, Published] = {
    "epochs": Published(200),
    "learning rate": Published(1e-4),
    "schedule": Published("halved after half of the epochs"),
    "network": Published("mtan"),
    "channels": _code("64, 128, 256, 512, 512"),
    "convolutions per stage": _code("2, 2, 3, 3, 3"),
    "tested": _code("mean over the last 10 epochs"),
    "validation samples": _code(0),
}

PUBLISHED: Mapping[str, Mapping[str, Published]] = {
    "qm9": {
        "epochs": Published(300),
        "batch size": Published(60),
        "learning rate": _code(1e-3),
        "schedule": _code("times 0.7 after 10 epochs without progress, at least 1e-05"),
        "n": Published(4),
        "tasks": Published(11),
        "training samples": _code(110_831),
        "validation samples": _code(10_000),
        "test samples": _code(10_000),
        "split": _code("at random, another for each seed"),
        "width": _code(64),
        "hidden units": _code(128),
        "network": _code("hard"),
        "targets": _code("standardized"),
        "tested": _code("network of the epoch that is best in validation"),
    },
    "celeba": {
        "epochs": Published(15),
        "batch size": Published(256),
        "learning rate": _code(3e-4),
        "schedule": _code("cosine over the epochs"),
        "n": Published(4),
        "tasks": Published(40),
        "training samples": _code(162_770),
        "validation samples": _code(19_867),
        "test samples": _code(19_962),
        "split": _code("official"),
        "image size": _code("64 x 64"),
        "width": _code(64),
        "network": _code("hard"),
        "tested": _code("network of the epoch that is best in validation"),
    },
    "nyuv2": {
        **_DENSE,
        "batch size": Published(2),
        "n": Published(2),
        "tasks": Published(3),
        "training samples": _code(795),
        "test samples": _code(654),
        "image size": _code("288 x 384"),
        "augmentation": _code("geometric"),
    },
    "cityscapes": {
        **_DENSE,
        "batch size": Published(8),
        "n": Published(4),
        "tasks": Published(2),
        "training samples": _code(2_975),
        "test samples": _code(500),
        "image size": _code("128 x 256"),
        "augmentation": _code("published"),
    },
}
"""Published settings by problem. Those of QM9 are of the rows that the paper's authors trained."""

SUMMARIES = {
    "mt10": "published with 2,000,000 vector steps, 10 seeds, Meta-World V1; today's V3 tasks are "
    "not comparable"
}
"""One line on what the paper trained, by problem without :data:`PUBLISHED` settings."""

_FULL_SIZE = {"nyuv2": (288, 384), "cityscapes": (128, 256)}
_SPLITS = {
    "official": "official",
    "SHA-256 of the GDB index": "at random, the same for each seed",
    "SHA-256 of the image's number": "at random, the same for each seed",
}
_OPTIONS = {
    "width": "width",
    "hidden": "hidden units",
    "architecture": "network",
    "targets": "targets",
    "augmentation": "augmentation",
}


@dataclass(frozen=True)
class PaperDifference:
    """One setting that is not the published one.

    Attributes:
        problem: The problem.
        setting: What it is.
        here: Its value here.
        published: Its published value.
        said: Whether the paper says so; else it is what the code does that the paper builds on.
    """

    problem: str
    setting: str
    here: Any
    published: Any
    said: bool = True

    def __str__(self) -> str:
        mark = "" if self.said else f" {BY_CODE}"
        return f"{self.setting}: {_shown(self.here)} here, {_shown(self.published)} published{mark}"


def listing(found: Sequence[PaperDifference]) -> list[str]:
    """Return differences as lines, with what their mark means.

    Example:
        >>> listing([PaperDifference("qm9", "width", 32, 64, said=False)])
        ['width: 32 here, 64 published †', '† by the published code; the paper does not say']
    """
    lines = [str(one) for one in found]
    return lines if all(one.said for one in found) else [*lines, BY_CODE_SAID]


def schedule_text(recipe: Mapping[str, Any]) -> str:
    """Return how the learning rate moves, in words.

    Args:
        recipe: Fields of a :class:`ntkmtl.bench.problems.base.Recipe`.

    Example:
        >>> schedule_text({"schedule": "one-cycle"})
        'one cycle'
    """
    kind = str(recipe.get("schedule", "one-cycle"))
    if kind == "plateau":
        return (
            f"times {recipe['plateau_factor']:g} after {recipe['plateau_patience']} epochs without "
            f"progress, at least {recipe['min_learning_rate']:g}"
        )
    said = {"one-cycle": "one cycle", "halved": "halved after half of the epochs"}
    return said.get(kind, kind)


def settings(facts: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """Return those settings of a comparison that the paper has too.

    Args:
        facts: :attr:`ntkmtl.bench.report.ResultTable.facts`.
        problem: Name of the problem.

    Returns:
        Numbers and strings by those keys of :data:`PUBLISHED` that the problem has.
    """
    recipe, sizes, options = facts["recipe"], facts["sizes"], facts["problem_options"]
    averaged = min(recipe.get("tested_epochs", 1), recipe["epochs"])
    found: dict[str, Any] = {
        "epochs": recipe["epochs"],
        "batch size": recipe["batch_size"],
        "learning rate": recipe["learning_rate"],
        "schedule": schedule_text(recipe),
        "n": recipe["minibatches"],
        "tasks": len(facts["tasks"]),
        "training samples": sizes["train"],
        "validation samples": sizes["val"],
        "test samples": sizes["test"],
        "tested": "network of the last epoch"
        if averaged == 1
        else f"mean over the last {averaged} epochs",
    }
    for key, name in _OPTIONS.items():
        if key in options:
            found[name] = options[key]
    if isinstance(options.get("architecture"), dict):
        found["network"] = options["architecture"]["name"]
    elif problem == "celeba":
        found["network"] = "hard"
    if isinstance(options.get("split"), str):
        found["split"] = _SPLITS.get(options["split"], options["split"])
    for key, name in (("widths", "channels"), ("depths", "convolutions per stage")):
        if key in options:
            found[name] = ", ".join(map(str, options[key]))
    if "side" in options:
        found["image size"] = f"{options['side']} x {options['side']}"
    if problem in _FULL_SIZE and "factor" in options:
        found["image size"] = " x ".join(str(n // options["factor"]) for n in _FULL_SIZE[problem])
    return found


def differences(facts: Mapping[str, Any], problem: str, published: str) -> list[PaperDifference]:
    """Return in what a comparison differs from the published training.

    Args:
        facts: :attr:`ntkmtl.bench.report.ResultTable.facts`.
        problem: Name of the problem that was trained.
        published: Name of the problem that the paper trained.

    Example:
        >>> facts = {
        ...     "recipe": {"epochs": 3, "batch_size": 60, "learning_rate": 1e-3, "minibatches": 4},
        ...     "sizes": {"train": 110_831, "val": 10_000, "test": 10_000},
        ...     "problem_options": {"width": 64, "hidden": 128},
        ...     "tasks": list("abcdefghijk"),
        ... }
        >>> [str(one) for one in differences(facts, "qm9", "qm9")][0]
        'epochs: 3 here, 300 published'
    """
    found = []
    if problem != published:
        found.append(PaperDifference(problem, "problem", problem, published))
    here = settings(facts, problem)
    for key, one in PUBLISHED[published].items():
        if key in here and not _same(here[key], one.value):
            found.append(PaperDifference(problem, key, here[key], one.value, one.said))
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def summary(problem: str) -> str:
    """Return one line on what the paper trained.

    Example:
        >>> summary("qm9")
        'published with 300 epochs, batch size 60, n 4, 110,831 training samples, 11 tasks'
    """
    if problem not in PUBLISHED:
        return SUMMARIES[problem]
    of = PUBLISHED[problem]
    return (
        f"published with {_shown(of['epochs'].value)} epochs, batch size "
        f"{_shown(of['batch size'].value)}, n {_shown(of['n'].value)}, "
        f"{_shown(of['training samples'].value)} training samples, "
        f"{_shown(of['tasks'].value)} tasks"
    )
