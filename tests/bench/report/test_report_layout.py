"""The pages as a browser lays them out: nothing overlaps, overflows or is hard to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_browser import ask
from report_folders import METRICS, realistic, write_run
from report_studies import study

from ntkmtl.bench.report import write_html
from ntkmtl.bench.report._analysis import write_page

MEASURE = (Path(__file__).parent / "report_measure.js").read_text(encoding="utf-8")
WIDTHS = (390, 768, 1400)
LONG = "a setting with a name that is longer than a phone is wide"


def one_method(root: Path) -> Path:
    for task, value in (("seg", 55.0), ("depth", 0.2)):
        write_run(root, "stl", 0, [value], task=task)
    write_run(root, "ls", 0, [50.0, 0.3], history=[[40.0, 0.5], [50.0, 0.3]])
    return root


def many_targets(root: Path) -> Path:
    tasks = [f"target_{number}" for number in range(14)]
    realistic(root, methods=["ls", "si", "ntkmtl", "ntkmtl-sr"], tasks=tasks, seeds=2, steps=60)
    return root


def long_names(root: Path) -> Path:
    metrics = [{**METRICS[0], "label": LONG, "task": LONG}, METRICS[1]]
    for number, method in enumerate(("ls", "package.module:" + "LongName" * 6, "ntkmtl")):
        for seed in (0, 1):
            write_run(
                root, method, seed, [50.0, 0.2 + number], metrics=metrics, folder=f"p/{number}",
                recipe={"learning_rate": 0.1**number}, options={LONG: LONG},
                problem_options={"long": LONG.replace(" ", "_") * 2},
            )  # fmt: skip
    return root


PAGES = {"one": one_method, "many": realistic, "targets": many_targets, "long": long_names}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", list(PAGES))
def test_a_report_of_any_width(tmp_path: Path, name: str, width: int) -> None:
    page = write_html(PAGES[name](tmp_path / "runs"))
    seen = ask(page, MEASURE, tmp_path, width=width)
    pinned = seen.pop("inSight")
    assert pinned[0] == "method"
    if name != "long":
        assert pinned == ["method", "MR", "Δm"]
    assert {key: value for key, value in seen.items() if value} == {}


def test_a_dark_report_can_be_read(tmp_path: Path) -> None:
    seen = ask(write_html(realistic(tmp_path / "runs", seeds=1)), MEASURE, tmp_path, dark=True)
    del seen["inSight"]
    assert {key: value for key, value in seen.items() if value} == {}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "tasks", [("mu", "alpha", "homo"), tuple(f"a long task {n}" for n in range(14))]
)
def test_an_analysis_of_any_width(tmp_path: Path, tasks: tuple[str, ...], width: int) -> None:
    page = write_page(study(tasks=tasks, steps=6, methods=["ls"]), tmp_path / "page.html")
    seen = ask(page, MEASURE, tmp_path, width=width)
    assert {key: value for key, value in seen.items() if value} == {}


def test_a_dark_analysis_can_be_read(tmp_path: Path) -> None:
    page = write_page(study(tasks=("a", "b"), steps=6, methods=["ls"]), tmp_path / "page.html")
    seen = ask(page, MEASURE, tmp_path, dark=True)
    assert {key: value for key, value in seen.items() if value} == {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            "document.querySelector('.xtitle').setAttribute('transform', 'translate(9, -16)')",
            "texts",
        ),
        ("document.querySelector('.xtitle').setAttribute('transform', 'translate(0, 60)')", "cut"),
        ("document.querySelector('h1').style.width = '3000px'", "tooWide"),
        ("document.querySelector('h1').style.width = '3000px'", "beyond"),
        ("document.querySelector('figcaption').style.marginTop = '-40px'", "blocks"),
        ("document.querySelector('figcaption').style.marginTop = '400px'", "blank"),
        ("document.querySelector('h2').style.color = '#888'", "faint"),
        ("document.querySelector('.options td').style.height = '900px'", "high"),
        ("document.querySelector('.diff, .options').style.width = '40px'", "narrow"),
    ],
)
def test_the_measure_finds_what_is_wrong(tmp_path: Path, change: str, found: str) -> None:
    seen: dict[str, Any] = ask(
        write_html(one_method(tmp_path / "runs")), f"{change};\n{MEASURE}", tmp_path
    )
    assert seen[found]
