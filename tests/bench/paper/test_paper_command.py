from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ntkmtl.bench import paper
from ntkmtl.bench.cli.app import app
from ntkmtl.bench.paper._runs import Request, measured, prepare
from ntkmtl.bench.paper._sidebyside import side_by_side
from ntkmtl.bench.report import build_table
from ntkmtl.bench.report._analysis import read_study

STAND_IN = "paper_stand_in:StandIn"
FOLDERS = [str(Path(__file__).parents[1] / "training"), str(Path(__file__).parent)]
SMALL = ["--problem", STAND_IN, "--recipe", "small"]
RUN = [*SMALL, "--jobs", "1", "--seeds", "2"]
PNG = b"\x89PNG\r\n\x1a\n"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["paper", *map(str, arguments)])


def good(*arguments: str | Path) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with one comparison, which every test may read and none may change."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NTKMTL_CACHE", str(folder / "cache"))
        patch.setattr(sys, "path", [*FOLDERS, *sys.path])
        patch.chdir(folder)
        made = good("run", "table7", *RUN, "--json")
        assert "12 runs to train" in made.stderr
        (folder / "made.json").write_text(made.stdout)
        yield folder


@pytest.fixture(autouse=True)
def _own_cache(place: Path) -> None:
    """Keep the module's cache of baselines instead of a new one for each test."""


@pytest.fixture
def made(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "made.json").read_text())
    return found


def line(found: dict[str, Any], method: str, source: str) -> dict[str, Any]:
    (row,) = (r for r in found["rows"] if (r["method"], r["source"]) == (method, source))
    numbers: dict[str, Any] = row["numbers"]
    return numbers


# ------------------------------------------------------------------------------------------------
# What is published


def test_the_list_has_every_table_and_figure() -> None:
    entries = json.loads(good("show", "--json").stdout)
    assert [entry["name"] for entry in entries] == [
        *("table1", "table2", "table3", "table4", "table6", "table7", "table8", "table9"),
        *("figure1", "figure2", "figure3", "figure4"),
    ]
    behind = {e["name"]: [problem["name"] for problem in e["problems"]] for e in entries}
    assert behind["table1"] == behind["table9"] == behind["figure2"] == ["nyuv2"]
    assert behind["table2"] == behind["table8"] == ["cityscapes", "celeba"]
    assert behind["table3"] == behind["table6"] == behind["figure3"] == ["qm9"]
    assert behind["table7"] == ["cityscapes"]
    assert behind["figure1"] == ["celeba"]
    assert behind["table4"] == ["mt10"]
    text = good("show").stdout
    assert all(entry["title"] in text for entry in entries)
    assert "Meta-World" in text


def test_published_tables_are_named_by_number_or_name() -> None:
    three = good("show", "3").stdout
    assert three == good("show", "table3").stdout == good("show", "Table 3").stdout
    assert "179.8" in three
    assert "0.97 ± 0.05" in good("show", "4").stdout
    assert "1.7 times" in good("show", "figure4").stdout
    assert json.loads(good("show", "figure3", "--json").stdout)["said"]
    assert "16.22" in good("show", "1", "--recomputed").stdout
    assert {c["table"] for c in json.loads(good("check", "1", "--json").stdout)} == {1}
    assert "Table 1" in good("check", "1").stdout
    assert {c["table"] for c in json.loads(good("check", "--json").stdout)} >= {1}


def test_every_subcommand_has_help() -> None:
    for name in ("show", "check", "run", "figure"):
        assert "--json" in good(name, "--help").stdout


def test_the_suggestion_without_data_can_be_asked_for(tmp_path: Path) -> None:
    assert "ntkmtl paper run table3 --problem qm9-mini" in " ".join(good("show").stdout.split())
    (one,) = prepare(paper.find_result("table3"), Request(problem="qm9-mini", out=tmp_path))
    assert one.problem.name == "qm9-mini"


# ------------------------------------------------------------------------------------------------
# Tables


def test_measured_numbers_are_those_of_the_comparison(place: Path, made: dict[str, Any]) -> None:
    table = build_table(place / "paper-runs" / "stand-in-small")
    assert table.facts["seeds"] == [0, 1]
    for method in ("ls", "ntkmtl", "ntkmtl-sr"):
        row = table.row(method)
        mine = line(made, method, "measured")
        assert row.delta_m is not None
        assert mine["delta_m"]["value"] == row.delta_m.mean
        assert mine["delta_m"]["stderr"] == row.delta_m.stderr
        assert mine["mr"]["value"] == row.mean_rank
        for column, estimate in zip(table.columns, row.estimates, strict=True):
            assert estimate is not None
            assert mine[column.name]["value"] == estimate.mean
        assert "pixel_accuracy" not in mine
        published = paper.table(7).row(method)
        theirs = line(made, method, "published")
        assert {name: number["value"] for name, number in theirs.items()} == {
            name: cell.value for name, cell in published.cells.items()
        }
    assert set(line(made, "stl", "measured")) == {"miou", "abs_error", "rel_error"}


def test_a_second_call_trains_nothing(place: Path, made: dict[str, Any]) -> None:
    again = good("run", "table7", *RUN, "--json")
    assert "Not trained again: 12 complete already" in again.stderr
    assert "to train" not in again.stderr
    assert json.loads(again.stdout) == made


def test_differences_are_those_of_the_settings(made: dict[str, Any]) -> None:
    found = {d["setting"]: (d["here"], d["published"]) for d in made["differences"]}
    assert found == {
        "problem": ("stand-in", "cityscapes"),
        "epochs": (2, 200),
        "batch size": (16, 8),
        "learning rate": (0.02, 1e-4),
        "schedule": ("one cycle", "halved after half of the epochs"),
        "n": (2, 4),
        "tasks": (3, 2),
        "training samples": (96, 2975),
        "validation samples": (24, 0),
        "test samples": (24, 500),
        "tested": ("network of the last epoch", "mean over the last 10 epochs"),
    }
    notes = " ".join(made["notes"])
    assert "Labels are derived." in notes
    assert "STL was trained here, 2 seeds" in notes
    assert "2 seeds here, 3 published" in notes
    assert "14 of 17 published methods were not run" in notes
    # Ranks by hand from Table 7, ls, ntkmtl, ntkmtl-sr: mIoU 1, 2, 3; accuracy 1, 3, 2;
    # absolute error 3, 2, 1; relative error 3, 1, 2.
    assert "alone give: ls 2.00, ntkmtl 2.00, ntkmtl-sr 2.00." in notes


def test_orders_are_compared_pair_by_pair(made: dict[str, Any]) -> None:
    (order,) = (o for o in made["orders"] if o["column"] == "delta_m")
    # Table 7: 1.92, 3.84 and 22.60.
    assert order["published"] == ["ntkmtl", "ntkmtl-sr", "ls"]
    measured = order["measured"]
    values = [line(made, method, "measured")["delta_m"]["value"] for method in measured]
    assert values == sorted(values)
    places = [order["published"].index(method) for method in measured]
    agree = sum(places[i] < places[j] for i in range(3) for j in range(i + 1, 3))
    assert (order["agree"], order["pairs"]) == (agree, 3)


def test_text_and_markdown_say_the_same(place: Path) -> None:
    text = good("run", "table7", *RUN).stdout
    markdown = good("run", "table7", *RUN, "--format", "markdown").stdout
    for said in (
        "Table 7: CityScapes, 2 tasks",
        "epochs: 2 here, 200 published",
        "training samples: 96 here, 2,975 published †",
        "Labels are derived.",
        str(Path("paper-runs") / "stand-in-small"),
    ):
        assert said in text
        assert said in markdown
    (published,) = (row for row in text.splitlines() if row.startswith("NTKMTL-SR "))
    assert published.split()[1:] == [
        *("published", "72.58", "92.93", "0.0124", "31.65", "8.00", "3.84"),
    ]
    assert "| NTKMTL-SR | published | 72.58 | 92.93 | 0.0124 | 31.65 | 8.00 | 3.84 |" in markdown


def test_published_stl_is_used_when_asked_for(place: Path) -> None:
    # On the command line only the paper's own problems take it; no data are needed for these runs.
    request = Request("small", STAND_IN, ["ls"], (0, 1))
    (one,) = prepare(paper.find_result("table7"), request)
    found = measured(replace(one, request=replace(request, stl="published")))
    # By the definition of Section 4.1, from the files of the runs and the paper's row STL.
    by_seed = []
    for seed in (0, 1):
        run = place / "paper-runs" / "stand-in-small" / "stand-in" / "ls" / f"seed-{seed}"
        miou, absolute, relative = json.loads((run / "result.json").read_text())["test"]
        drops = [
            -(miou - 74.01) / 74.01,
            (absolute - 0.0125) / 0.0125,
            (relative - 27.77) / 27.77,
        ]
        by_seed.append(100 * sum(drops) / 3)
    (row,) = found.rows()
    assert row.delta_m is not None
    assert row.delta_m.mean == pytest.approx(statistics.fmean(by_seed), rel=1e-9)
    assert row.delta_m.stderr == pytest.approx(statistics.stdev(by_seed) / math.sqrt(2), rel=1e-9)
    assert not any(row.is_baseline for row in found.table.rows)
    both = side_by_side(paper.find_result("table7"), [found])
    assert any("--stl published" in note for note in both.notes)
    assert both.runs[0]["stl"] == "published"


def test_without_baselines_there_is_no_delta_m(place: Path) -> None:
    found = json.loads(good("run", "table7", *RUN, "--stl", "none", "--json").stdout)
    assert "delta_m" not in line(found, "ls", "measured")
    assert "delta_m" in line(found, "ls", "published")
    assert any("--stl none" in note for note in found["notes"])


def test_delta_m_that_table_1_lacks_is_worked_out(place: Path) -> None:
    text = good("run", "table1", *RUN).stdout
    (row,) = (row for row in text.splitlines() if row.startswith("LS "))
    # 5.589 by the list at the end of docs/paper-tables.md.
    assert row.split()[-1] == "5.59*"
    assert "does not print this number" in text
    (own,) = (row for row in text.splitlines() if row.startswith("NTKMTL "))
    assert own.split()[-1] == "-6.99"


def test_table_6_has_both_published_rows(place: Path) -> None:
    found = json.loads(good("run", "table6", *RUN, "--methods", "ls,ntkmtl", "--json").stdout)
    sources = [row["source"] for row in found["rows"] if row["method"] == "ls"]
    assert sources == ["original", "reproduced", "measured"]
    assert line(found, "ls", "original")["delta_m"]["value"] == 177.6
    (order,) = (o for o in found["orders"] if o["column"] == "delta_m")
    assert order["published"] == ["ntkmtl", "ls"]  # 56.7 and 179.8


def test_published_metrics_rank_the_methods_that_were_run(place: Path) -> None:
    notes = " ".join(json.loads(good("run", "table3", *RUN, "--json").stdout)["notes"])
    # Ranks of Table 3 by hand: sums 27, 24 and 15 over 11 metrics.
    assert "alone give: ls 2.45, ntkmtl 2.18, ntkmtl-sr 1.36." in notes


# ------------------------------------------------------------------------------------------------
# Figures


def test_figure_3_is_delta_m_by_n(place: Path) -> None:
    arguments = ["figure", "figure3", *RUN, "--ns", "1,2,4"]
    made = good(*arguments, "--json")
    assert made.stderr.count("6 baselines from the cache") == 2
    found = json.loads(made.stdout)
    assert (place / found["figure"]).read_bytes().startswith(PNG)
    assert json.loads((place / found["numbers"]).read_text())["by_n"] == found["by_n"]
    folders = {one["n"]: Path(one["folder"]).name for one in found["by_n"]}
    # The recipe's own n is 2: those runs are the table's.
    assert folders == {1: "stand-in-small-n1", 2: "stand-in-small", 4: "stand-in-small-n4"}
    for one in found["by_n"]:
        row = build_table(place / one["folder"]).row("ntkmtl-sr")
        assert row.options["minibatches"] == one["n"]
        assert row.delta_m is not None
        assert (one["delta_m"], one["stderr"]) == (row.delta_m.mean, row.delta_m.stderr)
    assert len({one["delta_m"] for one in found["by_n"]}) == 3
    # ntkmtl has no n of its own: the table's runs have 1.
    table = good("run", "table3", *RUN, "--methods", "ntkmtl")
    assert "ntkmtl" in table.stdout
    own = json.loads(
        good("figure", "figure3", *RUN, "--methods", "ntkmtl", "--ns", "1,2", "--json").stdout
    )
    folders = {one["n"]: Path(one["folder"]).name for one in own["by_n"]}
    assert folders == {1: "stand-in-small", 2: "stand-in-small-n2"}
    again = good(*arguments)
    assert "to train" not in again.stderr
    assert "epochs: 2 here, 300 published" in again.stdout
    assert "  n: " not in again.stdout


def test_figure_2_is_the_recorded_kernel(place: Path) -> None:
    found = json.loads(good("figure", "figure2", *RUN, "--every", "3", "--json").stdout)
    assert (place / found["figure"]).read_bytes().startswith(PNG)
    study = read_study(place / "paper-runs" / "stand-in-small-recorded")
    assert study.methods[0].source == found["source"] == "exact"
    assert found["step"] == [0, 3, 6, 9]
    assert len(found["max_eigenvalues"]) == 4
    smallest = [row.index(min(row)) for row in found["max_eigenvalues"] if None not in row]
    for task, entry in enumerate(found["tasks"]):
        assert entry["smallest"] == pytest.approx(smallest.count(task) / len(smallest))
    assert found["max_eigenvalues"][0][0] == study.methods[0].max_eigenvalues[0, 0].item()


def test_figure_4_times_each_n(place: Path) -> None:
    found = json.loads(
        good(
            "figure", "figure4", *SMALL, "--ns", "1,4", "--steps", "1", "--turns", "3", "--json"
        ).stdout
    )
    times = found["times"]
    assert [(one["method"], one["minibatches"]) for one in times] == [
        ("ls", None),
        ("ntkmtl-sr", 1),
        ("ntkmtl-sr", 4),
    ]
    assert times[0]["ratio"] == 1.0
    for one in times:
        assert 0 < one["lower"] <= one["seconds"] <= one["upper"]
        assert 0 < one["ratio_lower"] <= one["ratio"] <= one["ratio_upper"]
        assert one["seconds_per_epoch"] == pytest.approx(6 * one["seconds"])  # 96 samples by 16
    assert (place / found["figure"]).read_bytes().startswith(PNG)


def _row(label: str, method: str, n: int, milliseconds: float, **more: Any) -> dict[str, Any]:
    seconds = {"median": milliseconds / 1e3, "lower": 9e-4, "upper": 1.0}
    return {
        "label": label,
        "group": "plain" if not method else "ntkmtl",
        "method": method,
        "minibatches": n,
        "error": "",
        "seconds": seconds,
        "ratio": {"median": milliseconds, "lower": 0, "upper": 9},
        **more,
    }


def test_times_of_the_benchmark_are_read(place: Path, tmp_path: Path) -> None:
    rows = [
        _row("plain sum(losses).backward()", "", 0, 1.0),
        _row("ls", "ls", 0, 1.01),
        _row("ntkmtl-sr n=4", "ntkmtl-sr", 4, 1.02),
        _row("ntkmtl-sr n=4, hooked", "ntkmtl-sr", 4, 1.5),
        _row("ntkmtl, exact", "ntkmtl", 0, 7.0),
        _row("ntkmtl-sr n=6", "ntkmtl-sr", 6, 1.1, error="out of memory"),
        _row("ntkmtl-sr n=4, k n calls", "", 4, 1.3, group="published"),
    ]
    case = {"network": "celeba", "tasks": 40, "batch": 32, "rows": rows}
    few = {"network": "celeba", "tasks": 2, "batch": 32, "rows": rows[:1]}
    file = tmp_path / "measured.json"
    file.write_text(
        json.dumps({"cases": [few, case], "command": "peers", "facts": {"device": "x"}})
    )
    picture = tmp_path / "f.png"
    found = json.loads(
        good("figure", "figure1", "--measured", file, "-o", picture, "--json").stdout
    )
    assert [(t["method"], t["minibatches"], t["seconds"], t["ratio"]) for t in found["times"]] == [
        ("ls", None, 1e-3, 1.0),
        ("ntkmtl-sr", 4, 1.02e-3, 1.02),
        ("ntkmtl", 1, 7e-3, 7.0),
    ]
    assert found["facts"]["tasks"] == 40
    assert picture.read_bytes().startswith(PNG)
    assert picture.with_suffix(".json").exists()
    refused = call("figure", "figure4", "--measured", file)
    assert refused.exit_code == 2
    assert "no times of qm9; it has celeba" in refused.stderr
    file.write_text('{"cases": [{"tasks": 1}]}')
    assert (
        "not what benchmarks/peers.py writes"
        in call("figure", "figure1", "--measured", file).stderr
    )


# ------------------------------------------------------------------------------------------------
# What users get wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "table5"], "no Table 5"),
        (["show", "figure9"], "no Figure 9"),
        (["show", "chapter"], "no 'chapter' in the paper"),
        (["show", "3", "--seeds", "2"], "No such option: --seeds"),
        (["show", "--recomputed"], "--recomputed goes with a table"),
        (["show", "figure1", "--recomputed"], "--recomputed goes with a table, found figure1"),
        (["check", "figure2"], "check takes a table, found figure2"),
        (["run", "table3"], "say what to train: --recipe small"),
        (["run", "figure3", *RUN], "ntkmtl paper figure figure3"),
        (["figure", "table3", *RUN], "ntkmtl paper run table3"),
        (["run", "table4", "--recipe", "small"], "there are paper, cpu-mt10, cpu-mt4"),
        (["run", "table4", "--recipe", "cpu-mt4", "--epochs", "2"], "--epochs is not for mt10"),
        (["run", "table4", "--seeds", "2"], "say what to train: --recipe cpu-mt4"),
        (["run", "table2", "--problem", STAND_IN], "--problem chooses one of them"),
        (["run", "table7", *RUN, "--methods", "nash"], "unknown method 'nash'"),
        (["run", "table7", *RUN, "--methods", "stl"], "ntkmtl compare PROBLEM --methods stl"),
        (["run", "table7", *RUN, "--data", "missing"], "missing is not there"),
        (["run", "table7", *SMALL, "--seed-list", "1,x"], "--seed-list takes whole numbers"),
        (["run", "table7", *RUN, "--seed-list", "1"], "by --seeds or by --seed-list"),
        (["run", "table7", *RUN, "--lr", "inf"], "--lr must be positive and finite, found inf"),
        (["run", "table7", "--problem", STAND_IN, "--recipe", "big"], "Found recipe='big'"),
        (["run", "table7", "--problem", "qm9-mini", "--recipe", "small"], "leave --recipe out"),
        (["run", "table3", *RUN, "--stl", "published"], "needs the paper's problem, qm9, found"),
        (["run", "table7", *RUN, "--ns", "2"], "No such option: --ns"),
        (["figure", "figure3", *RUN, "--every", "2"], "--every is not for figure3"),
        (["figure", "figure3", *RUN, "--ns", "0"], "whole numbers from 1"),
        (["figure", "figure3", *RUN, "--ns", "17"], "at most the batch size, 16. Found 17"),
        (["figure", "figure3", *RUN, "--stl", "none"], "needs baselines"),
        (["figure", "figure3", *RUN, "--methods", "ls,si"], "one method"),
        (
            ["figure", "figure4", *SMALL, "--ns", "17"],
            "which must be at most the number of samples of a pass, 16",
        ),
        (["figure", "figure1", "--measured", "nowhere.json"], "nowhere.json"),
        (["figure", "figure1", *RUN, "--seeds", "2"], "--seeds is not for figure1"),
        (["figure", "figure1", "--measured", "x.json", "--methods", "ls"], "with --measured"),
        (["figure", "figure2", *RUN, "--methods", "uw,ls"], "one method. Found uw, ls"),
        (["figure", "figure2", *SMALL, "--output", "x.json"], "another ending"),
    ],
)
def test_what_users_get_wrong_is_one_line(place: Path, arguments: list[str], said: str) -> None:
    before = sorted(place.rglob("*"))
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert sorted(place.rglob("*")) == before
