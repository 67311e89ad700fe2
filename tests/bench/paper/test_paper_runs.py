from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ntkmtl.bench import paper
from ntkmtl.bench.paper import _timing
from ntkmtl.bench.paper._figures import _bars, times
from ntkmtl.bench.paper._results import RECIPES
from ntkmtl.bench.paper._runs import Request, RequestError, prepare
from ntkmtl.bench.paper._settings import PUBLISHED, differences, schedule_text
from ntkmtl.bench.problems.celeba import CelebA
from ntkmtl.bench.problems.cityscapes import Cityscapes
from ntkmtl.bench.problems.nyuv2 import NYUv2
from ntkmtl.bench.problems.qm9 import QM9

PROBLEMS: dict[str, Any] = {
    kind.name: kind for kind in (QM9, CelebA, NYUv2, Cityscapes)
}  # fmt: skip


def test_published_settings_are_those_of_the_paper() -> None:
    """Numbers from Section 4.1 and Appendix C.1, C.2 and C.4."""
    said = {
        "qm9": {"epochs": 300, "batch size": 60, "n": 4, "tasks": 11},
        "celeba": {"epochs": 15, "batch size": 256, "n": 4, "tasks": 40},
        "nyuv2": {"epochs": 200, "batch size": 2, "n": 2, "tasks": 3, "learning rate": 1e-4},
        "cityscapes": {"epochs": 200, "batch size": 8, "n": 4, "tasks": 2, "learning rate": 1e-4},
    }
    for problem, values in said.items():
        for key, value in values.items():
            one = PUBLISHED[problem][key]
            assert (problem, key, one.value, one.said) == (problem, key, value, True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_named_paper_are_the_published_settings(name: str) -> None:
    kind = PROBLEMS[name]
    assert set(kind.recipes) == set(RECIPES)
    recipe = kind.recipes["paper"]
    published = PUBLISHED[name]
    assert recipe.epochs == published["epochs"].value
    assert recipe.batch_size == published["batch size"].value
    assert recipe.learning_rate == published["learning rate"].value
    assert recipe.minibatches == published["n"].value
    assert len(kind.tasks) == published["tasks"].value
    if name == "celeba":  # a known difference: see docs/problems/celeba.md
        assert schedule_text(asdict(recipe)) == "constant"
    else:
        assert schedule_text(asdict(recipe)) == published["schedule"].value


def _facts(name: str, **options: Any) -> dict[str, Any]:
    published = {key: one.value for key, one in PUBLISHED[name].items()}
    recipe = asdict(PROBLEMS[name].recipes["paper"])
    if name in ("nyuv2", "cityscapes"):
        recipe["tested_epochs"] = 10
    return {
        "recipe": recipe,
        "sizes": {
            split: published[f"{word} samples"]
            for split, word in (("train", "training"), ("val", "validation"), ("test", "test"))
        },
        "tasks": list(range(published["tasks"])),
        "problem_options": options,
    }


def test_the_full_recipe_differs_in_what_the_docs_say() -> None:
    found = differences(
        _facts("nyuv2", factor=1, widths=[64, 128, 256, 512, 512], architecture="mtan"),
        "nyuv2",
        "nyuv2",
    )
    assert found == []
    qm9 = _facts("qm9", width=64, hidden=128, split="SHA-256 of the GDB index")
    assert [one.setting for one in differences(qm9, "qm9", "qm9")] == ["split", "tested"]
    celeba = _facts("celeba", width=64, side=64, split="official")
    assert [one.setting for one in differences(celeba, "celeba", "celeba")] == [
        "schedule",
        "tested",
    ]


def test_a_smaller_network_and_image_are_told() -> None:
    facts = _facts("nyuv2", factor=4, widths=[8, 16, 32], depths=[2, 2, 2], protocol="clean")
    assert [str(one) for one in differences(facts, "nyuv2", "nyuv2")] == [
        "channels: 8, 16, 32 here, 64, 128, 256, 512, 512 published †",
        "convolutions per stage: 2, 2, 2 here, 2, 2, 3, 3, 3 published †",
        "image size: 72 x 96 here, 288 x 384 published †",
    ]
    celeba = _facts("celeba", width=16, side=32, split="SHA-256 of the image's number")
    found = {one.setting: one.here for one in differences(celeba, "celeba", "celeba")}
    assert found["image size"] == "32 x 32"
    assert found["split"] == "at random, the same for each seed"
    assert found["width"] == 16


def test_means_are_over_no_more_epochs_than_were_trained() -> None:
    facts = _facts("nyuv2")
    facts["recipe"]["epochs"] = 3
    found = {one.setting: one.here for one in differences(facts, "nyuv2", "nyuv2")}
    assert found["tested"] == "mean over the last 3 epochs"


def test_every_table_and_figure_names_columns_that_are_there() -> None:
    for one in paper.paper_results():
        for part in one.parts:
            if not one.supervised:
                continue
            assert part.problem in PROBLEMS
            if one.kind == "table":
                for name in (part.mr, part.delta_m):
                    assert not name or paper.table(one.number).column(name)
                if part.metrics:
                    names = {metric.name for metric in PROBLEMS[part.problem].metrics}
                    assert {c.name for c in paper.table(part.metrics).metrics} == names
            if part.baseline:
                paper.table(part.baseline).row("stl", "reproduced" if part.baseline == 6 else None)


def test_all_stands_for_the_methods_of_the_table() -> None:
    assert paper.find_result("table8").all_methods == ("ntkmtl", "ntkmtl-sr")
    request = Request(problem="qm9-mini", methods=["all"])
    (one,) = prepare(paper.find_result("table3"), request)
    assert len(one.methods) == 14
    assert "stl" not in one.methods
    assert one.folder == Path("paper-runs") / "qm9-mini"


def test_celeba_has_no_published_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        name = "celeba"
        metrics = ()

    monkeypatch.setattr("ntkmtl.bench.paper._runs.find_problem", lambda *_: Absent())
    with pytest.raises(RequestError, match="no STL metrics of celeba"):
        prepare(paper.find_result("table2"), Request(problem="celeba", stl="published"))


def test_the_rest_of_a_table_is_offered_where_data_are_missing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="To run the rest of Table 2 alone: --problem celeba"):
        prepare(paper.find_result("table2"), Request(recipe="small", data=str(tmp_path)))


class _Clock:
    """Gives start and end of each turn: contenders take 1, 2 and 3 seconds, then more."""

    def __init__(self, lengths: list[float]) -> None:
        self.marks = self._marks(lengths)

    @staticmethod
    def _marks(lengths: list[float]) -> Iterator[float]:
        now = 0.0
        for length in lengths:
            yield now
            now += length
            yield now

    def perf_counter(self) -> float:
        return next(self.marks)


def test_times_are_medians_and_ratios_of_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timing, "_steps", lambda training, count: None)
    # Three turns of ls, n = 1, ls, n = 4. The machine slows down tenfold in the middle of the last,
    # which moves no ratio but where it begins.
    lengths = [2.0, 4.0, 2.0, 6.0, 4.0, 4.0, 4.0, 10.0, 2.0, 4.0, 20.0, 60.0]
    monkeypatch.setattr(_timing, "time", _Clock(lengths))
    request = Request(problem="qm9-mini", methods=["ntkmtl-sr"])
    (one,) = prepare(paper.find_result("figure4"), request)
    found, facts = _timing.measure(one, [1, 4], steps=2, turns=3, threads=1)
    assert [(t.label, t.seconds, t.ratio) for t in found] == [
        ("ls", 1.5, 1.0),  # 1, 1, 2, 2, 1, 10 seconds per step
        ("ntkmtl-sr, n = 1", 2.0, 2.0),  # 2, 2, 2: ratios 2, 1, 2
        ("ntkmtl-sr, n = 4", 5.0, 3.0),  # 3, 5, 30: ratios 3, 2.5, 3
    ]
    assert (found[0].lower, found[0].upper) == (1.0, 2.0)
    assert (found[1].ratio_lower, found[1].ratio_upper) == (1.5, 2.0)
    assert facts["steps_per_epoch"] == 50
    assert found[2].seconds_per_epoch == 250.0


def test_bars_and_labels_of_times_are_of_the_same_numbers() -> None:
    # By their seconds the bars would be 2 and 1 long, while the label says that one is slower.
    plain = _timing.Timed("ls", None, 2.0, 1.0, 3.0, 1.0, 1.0, 1.0, 20.0)
    other = _timing.Timed("ntkmtl-sr", 4, 1.0, 0.5, 9.0, 1.25, 1.0, 1.5, 10.0)
    facts = {"problem": "qm9", "tasks": 11, "batch_size": 60, "hardware": {}}
    drawn = times(paper.find_result("figure4"), [plain, other], facts, "qm9")
    figure = _bars(drawn)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [20.0, 25.0]
    assert [text.get_text() for text in axes.texts] == ["1.00 × LS", "1.25 × LS"]
    assert [row[-2:] for row in drawn.rows] == [
        ("1.00", "1.00 to 1.00"),
        ("1.25", "1.00 to 1.50"),
    ]


def test_a_timing_needs_steps() -> None:
    (one,) = prepare(paper.find_result("figure4"), Request(problem="qm9-mini"))
    with pytest.raises(_timing.TimingError, match="at least 1"):
        _timing.measure(one, [1], steps=0)
