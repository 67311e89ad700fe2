"""The page: what is in its file, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from report_browser import ask, dump
from report_folders import METRICS, TARGETS, realistic, toy, write_run

from ntkmtl.bench.report import build_table, render, write_html
from ntkmtl.bench.report._html import embed
from ntkmtl.bench.runs import RunFileError

# What a reader does, one thing after the other, and what is to be seen after it.
READ = """
const article = () => document.querySelector("article:not([hidden])");
const find = (selector) => article().querySelector(selector);
const chart = (kind) => find(`[data-chart="${kind}"]`);
const methods = () =>
  [...article().querySelectorAll(".results tbody th")].map((cell) => cell.textContent);
const heads = [...article().querySelectorAll(".results thead button")];
const head = (text) => heads.find((each) => each.textContent.startsWith(text));
const buttons = (kind) => [...find(`[data-legend="${kind}"]`).querySelectorAll("button")];
const lines = (kind) => chart(kind).querySelectorAll(".scatterlayer .trace path.js-line").length;
const set = (selector, value, event) => {
  find(selector).value = value;
  find(selector).dispatchEvent(new Event(event));
};
const saved = [];
Export.save = (name, type, text) => saved.push([name, text]);

const seen = { shapes: {}, texts: {} };
for (const element of article().querySelectorAll("[data-chart]")) {
  const kind = element.dataset.chart;
  seen.shapes[kind] = [...element.querySelectorAll(".js-line, .point path")].filter(
    (path) => (path.getAttribute("d") || "").length > 4).length;
  seen.texts[kind] = element.textContent;
}
seen.savable = [...article().querySelectorAll("[data-svg]:not([hidden])")].map(
  (each) => each.dataset.svg);
seen.resources = performance.getEntriesByType("resource").length;
seen.images = document.querySelectorAll("img, script[src], link[href], iframe").length;
seen.links = document.querySelectorAll("a").length;
seen.charts = document.querySelectorAll(".js-plotly-plot").length;
seen.heads = heads.map((each) => each.firstChild.textContent.trim());
seen.order = { start: methods() };
head("Δm").click();
seen.order.delta = methods();
seen.sorted = head("Δm").parentElement.getAttribute("aria-sort");
head("Δm").click();
seen.order.deltaTwice = methods();
heads[0].click();
seen.order.name = methods();
heads[4].click();
seen.order.first = methods();
for (const button of article().querySelectorAll("[data-save]")) button.click();

if (chart("curves-0") && !chart("curves-0").classList.contains("empty")) {
  seen.shown = lines("curves-0");
  buttons("curves").at(-1).click();
  seen.none = lines("curves-0");
  buttons("curves").at(-2).click();
  seen.all = lines("curves-0");
  buttons("curves")[1].dispatchEvent(new MouseEvent("click", { bubbles: true, detail: 1 }));
  seen.without = lines("curves-0");
  buttons("curves")[1].dispatchEvent(new MouseEvent("click", { bubbles: true, detail: 2 }));
  seen.alone = lines("curves-0");
  seen.pressed = buttons("curves").map((each) => each.getAttribute("aria-pressed"));
  find("[data-seeds]").click();
  seen.seeds = lines("curves-0");
  const values = () => chart("curves-0").data.at(-1).y;
  seen.rough = values();
  set('[data-smooth="curves"]', "20", "input");
  seen.smooth = values();
  seen.reach = find('[data-reach="curves"]').textContent;
  set('[data-smooth="curves"]', "0", "input");
  const drawn = new Promise((done) => {
    Export.save = (name, type, text) => done(saved.push([name, text]));
  });
  find('[data-svg="curves"]').click();
  await drawn;
  const panels = find('[data-choice="curves"]');
  seen.panels = [...panels.options].map((option) => option.textContent);
  set('[data-choice="curves"]', panels.options[panels.options.length - 1].value, "change");
  seen.single = [...article().querySelectorAll(".panels h3")].map((each) => each.textContent);
  const log = find('[data-log="curves"]');
  seen.log = log.checked;
  log.click();
  seen.logAfter = log.checked;
  set('[data-choice="kind"]', "training", "change");
  seen.losses = [...article().querySelectorAll(".panels h3")].map((each) => each.textContent);
}
if (find('[data-choice="weights"]').options.length) {
  const other = find('[data-choice="weights"]');
  seen.methods = [...other.options].map((option) => option.textContent);
  set('[data-choice="weights"]', other.options[0].value, "change");
  seen.weights = lines("weights");
  seen.tasks = buttons("weights").map((each) => each.textContent);
  const windows = () => find('[data-window="weights"]').textContent;
  seen.window = windows();
  set('[data-smooth="weights"]', "0", "input");
  seen.windowAfter = windows();
}
seen.saved = saved;
const problems = [...document.querySelectorAll("[data-show]")];
if (problems.length) {
  problems.at(-1).click();
  seen.second = document.querySelector("article:not([hidden]) h1").textContent.trim();
  seen.secondCharts = document.querySelectorAll("article:not([hidden]) .js-plotly-plot").length;
}
return seen;
"""


def ask_reader(page: Path, tmp_path: Path, width: int = 1280) -> dict[str, Any]:
    return ask(page, READ, tmp_path, width=width)


def without_plotly(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    start = text.index("<script>", text.index('id="data"'))
    return text[:start] + text[text.index("</script>", start) :]


def data_of(page: Path) -> list[dict[str, Any]]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8")
    )
    assert found
    value: list[dict[str, Any]] = json.loads(found[1])
    return value


# ------------------------------------------------------------------------------------------------
# The file


def test_it_goes_where_it_is_told(tmp_path: Path) -> None:
    toy(tmp_path / "runs")
    assert write_html(tmp_path / "runs") == tmp_path / "runs" / "report.html"
    other = tmp_path / "new" / "page.html"
    assert write_html(tmp_path / "runs", other) == other
    assert other.is_file()


def test_it_is_self_contained_and_holds_plotly_once(tmp_path: Path) -> None:
    page = write_html(toy(tmp_path))
    text = page.read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1
    own = without_plotly(page)
    assert not re.search(r"<[^>]* (src|href|action)\s*=|@import|url\(|integrity", own)
    assert set(re.findall(r"https?://[^\s\"']+", own)) == {"http://www.w3.org/2000/svg"}
    assert len(own) < 100_000


def test_the_policy_names_every_script_by_its_hash(tmp_path: Path) -> None:
    text = write_html(toy(tmp_path)).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in html.unescape(policy[1])
    assert "default-src 'none'" in html.unescape(policy[1])
    assert "unsafe-inline" not in html.unescape(policy[1]).split("style-src")[0]


def test_a_page_replaces_the_one_before_in_one_piece(tmp_path: Path) -> None:
    page = write_html(toy(tmp_path))
    page.write_text("old")
    write_html(tmp_path)
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_curves_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, history in ((0, [[10.0, 1.0], [20.0, 0.5]]), (1, [[14.0, 3.0], [20.0, 0.7]])):
        write_run(tmp_path, "ls", seed, history[-1], history=history)
    (data,) = data_of(write_html(tmp_path))
    curve = data["validation"]["0"]
    assert curve["epoch"] == curve["seedEpoch"] == [1, 2]
    assert curve["mean"] == [[12.0, 20.0], [2.0, 0.6]]
    # 10 and 14: deviation sqrt(8) over sqrt(2).
    assert curve["stderr"] == [[2.0, 0.0], [1.0, 0.1]]
    assert curve["seeds"] == [
        [0, [[10.0, 20.0], [1.0, 0.5]]],
        [1, [[14.0, 20.0], [3.0, 0.7]]],
    ]


def test_training_losses_are_means_over_seeds_where_tasks_have_labels(tmp_path: Path) -> None:
    for seed, losses in ((0, [[1.0, None], [3.0, 4.0]]), (1, [[2.0, None], [5.0, None]])):
        place = write_run(tmp_path, "ls", seed, [50.0, 0.2], history=[[50.0, 0.2]] * 2)
        found = json.loads((place / "history.json").read_text())
        for epoch, values in zip(found["epochs"], losses, strict=True):
            epoch["train_losses"] = values
        (place / "history.json").write_text(json.dumps(found))
    (data,) = data_of(write_html(tmp_path))
    curve = data["training"]["0"]
    assert curve["mean"] == [[1.5, 4.0], [None, 4.0]]
    assert curve["stderr"] == [[0.5, 1.0], [None, None]]
    assert data["tasks"] == ["seg", "depth"]


def test_a_page_holds_the_curves_of_the_first_few_seeds(tmp_path: Path) -> None:
    for seed in range(12):
        write_run(tmp_path, "ls", seed, [50.0 + seed, 0.2])
    (data,) = data_of(write_html(tmp_path))
    curve = data["validation"]["0"]
    assert [seed for seed, _ in curve["seeds"]] == list(range(8))
    assert curve["mean"][0] == [55.5]


def test_curves_of_stl_join_the_runs_of_its_tasks(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.1])
    write_run(tmp_path, "stl", 0, [60.0], task="seg", history=[[55.0], [60.0]])
    write_run(tmp_path, "stl", 0, [0.2], task="depth", history=[[0.4], [0.2]])
    (data,) = data_of(write_html(tmp_path))
    assert data["methods"][0]["baseline"] is True
    assert data["validation"]["0"] == {
        "epoch": [1, 2],
        "mean": [[55.0, 60.0], [0.4, 0.2]],
        "stderr": None,
        "seedEpoch": [],
        "seeds": [],
    }
    assert data["training"]["0"]["mean"] == [[1.0, 1.0], [1.0, 1.0]]
    assert list(data["weights"]) == ["1"]


def test_weights_and_eigenvalues_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, scale in ((0, 1.0), (1, 3.0)):
        weights = scale * np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        eigenvalues = weights.copy()
        eigenvalues[1] = np.nan
        write_run(
            tmp_path, "ntkmtl", seed, [50.0, 0.1],
            weights=weights, eigenvalues=eigenvalues, step=np.array([0, 5, 10]),
        )  # fmt: skip
    (data,) = data_of(write_html(tmp_path))
    assert data["weights"]["0"] == {
        "step": [0, 5, 10],
        "values": [[2.0, 6.0, 10.0], [4.0, 8.0, 12.0]],
        "window": 5,
    }
    # Where the kernel was not read there is no value.
    assert data["eigenvalues"]["0"]["step"] == [0, 10]
    assert data["eigenvalues"]["0"]["values"] == [[2.0, 10.0], [4.0, 12.0]]


def test_long_runs_are_thinned_by_windows(tmp_path: Path) -> None:
    ramp = np.stack([np.arange(2000.0), np.full(2000, 7.0)], axis=1)
    write_run(tmp_path, "ls", 0, [50.0, 0.1], weights=ramp, history=[[1.0, 2.0]] * 1000)
    (data,) = data_of(write_html(tmp_path))
    series = data["weights"]["0"]
    assert len(series["step"]) == 240
    assert series["window"] == 8.364
    np.testing.assert_allclose(series["values"][0], series["step"], atol=5)
    assert set(series["values"][1]) == {7.0}
    epoch = data["validation"]["0"]["epoch"]
    assert (len(epoch), epoch[0], epoch[-1]) == (240, 1, 1000)


def test_the_data_of_twenty_methods_are_small(tmp_path: Path) -> None:
    methods = ["ls", "ntkmtl", *(f"method-{number}" for number in range(18))]
    page = write_html(realistic(tmp_path, methods=methods, steps=500, epochs=100))
    assert len(without_plotly(page)) < 2_500_000


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    toy(tmp_path)
    path = tmp_path / "toy" / "uw" / "seed-0" / "steps.npz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunFileError, match=r"seed-0.steps\.npz"):
        write_html(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"epochs": 3}',
        '{"epochs": [3]}',
        '{"epochs": [{"epoch": 0}]}',
        '{"epochs": [{"epoch": 0, "val": [1]}]}',
        '{"epochs": [{"epoch": 0, "val": [1, null]}]}',
        '{"epochs": [{"epoch": 0, "val": [1, NaN]}]}',
        '{"epochs": [{"epoch": 1e400, "val": [1, 2]}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_history_is_named(tmp_path: Path, content: str) -> None:
    place = write_run(tmp_path, "ls", 0, [50.0, 0.1])
    (place / "history.json").write_text(content)
    with pytest.raises(RunFileError, match=r"history\.json"):
        write_html(tmp_path)


def test_the_data_file_of_a_table_is_named(tmp_path: Path) -> None:
    place = write_run(tmp_path, "ls", 0, [50.0, 0.1], problem="table")
    config = json.loads((place / "config.json").read_text("utf-8"))
    assert "Data file" not in write_html(tmp_path).read_text("utf-8")
    config["created_with"] = {"csv": "/somewhere/houses <1>.csv", "targets": "price"}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = write_html(tmp_path).read_text("utf-8")
    assert "<dt>Data file</dt><dd>houses &lt;1&gt;.csv</dd>" in text
    assert "somewhere" not in text


def test_embedded_json_cannot_end_its_element() -> None:
    text = embed({"<!--</script>&\u2028": [float("inf"), 1.5]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"<!--</script>&\u2028": [None, 1.5]}


# ------------------------------------------------------------------------------------------------
# In a browser


def test_charts_are_drawn_and_the_console_is_silent(tmp_path: Path) -> None:
    page = write_html(realistic(tmp_path / "runs"))
    document, lines = dump(page, tmp_path / "profile")
    assert lines == []
    # Four charts, and a panel for each of eleven metrics.
    assert len(re.findall(r'<div class="chart[^"]*js-plotly-plot"', document)) == 15


@pytest.mark.parametrize("width", [1280, 390])
def test_a_reader_at_work(tmp_path: Path, width: int) -> None:
    root = realistic(tmp_path / "runs")
    table = build_table(root)
    seen = ask_reader(write_html(root), tmp_path, width)

    assert seen["charts"] == 15
    assert seen["shapes"]["delta"] >= 11
    assert seen["shapes"]["time"] >= 12
    assert all(seen["shapes"][f"curves-{number}"] >= 8 for number in range(11))
    assert seen["shapes"]["weights"] >= 11
    assert seen["shapes"]["eigenvalues"] >= 11
    assert seen["resources"] == 0
    assert seen["images"] == 0
    assert seen["heads"][:5] == ["method", "MR", "Δm", "time", "μ"]

    start = [row.method for row in table.rows]
    ranked = sorted(
        (row for row in table.rows if row.delta_m), key=lambda r: r.delta_m.mean if r.delta_m else 0
    )
    best_first = [row.method for row in ranked]
    assert seen["order"]["start"] == start
    assert seen["order"]["delta"] == ["stl", *best_first]
    assert seen["order"]["deltaTwice"] == ["stl", *best_first[::-1]]
    assert seen["order"]["name"] == ["stl", *sorted(best_first)]
    assert seen["sorted"] == "ascending"

    # Eight of twelve methods at first, each with a line and two edges of its band where it has one.
    assert seen["none"] == 0
    assert seen["shown"] < seen["all"]
    assert seen["alone"] < seen["without"] < seen["all"]
    assert [i for i, pressed in enumerate(seen["pressed"]) if pressed == "true"] == [1]
    assert seen["methods"] == [method for method in start if method != "stl"]
    assert seen["weights"] == 11
    assert seen["tasks"] == [*(name for name, *_ in TARGETS), "all", "none"]
    # 600 steps make 240 points of 2.5 steps; smoothing takes in five to either side.
    assert seen["window"] == " and over windows of 28 steps"
    assert seen["windowAfter"] == " and over windows of 3 steps"


def test_panels_smoothing_and_single_seeds(tmp_path: Path) -> None:
    seen = ask_reader(write_html(realistic(tmp_path / "runs")), tmp_path)
    assert seen["panels"][:2] == ["all, side by side", "μ (D)"]
    assert len(seen["panels"]) == 12
    assert seen["single"] == ["c_v (cal/mol·K) lower is better"]
    assert seen["log"] != seen["logAfter"]
    assert seen["losses"] == [f"{name} training loss" for name, *_ in TARGETS]
    # One method is shown: its three seeds instead of its mean and two edges of the band.
    assert seen["seeds"] == 3
    # 30 epochs, a tenth to either side, as far as there are as many on both.
    rough, smooth = seen["rough"], seen["smooth"]
    assert seen["reach"] == "over 7 epochs"
    assert smooth[0] == rough[0]
    assert smooth[1] == pytest.approx(sum(rough[:3]) / 3)
    assert smooth[10] == pytest.approx(sum(rough[7:14]) / 7)


def test_the_table_and_the_charts_can_be_saved(tmp_path: Path) -> None:
    root = realistic(tmp_path / "runs", methods=["ls", "si"], tasks=["mu", "alpha"])
    saved = dict(ask_reader(write_html(root), tmp_path)["saved"])
    table = build_table(root)
    assert saved["qm9-mini.csv"] == render(table, "csv")
    assert saved["qm9-mini.tex"] == render(table, "latex")
    picture = ElementTree.fromstring(saved["qm9-mini-validation.svg"])
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    # Titles of the panels, and the legend of what is shown.
    assert [text for text in texts if text in ("μ (D)", "α (a₀³)", "ls", "si")] == [
        "μ (D)",
        "α (a₀³)",
        "ls",
    ]
    lines = [e for e in picture.iter() if e.get("class") == "js-line"]
    assert len(lines) >= 6


def test_higher_is_better_sorts_the_other_way(tmp_path: Path) -> None:
    seen = ask_reader(write_html(toy(tmp_path / "runs")), tmp_path)
    assert seen["order"]["first"] == ["stl", "ntkmtl", "ls", "uw"]


def test_references_stay_below_the_methods(tmp_path: Path) -> None:
    root = toy(tmp_path / "runs")
    rows = [
        {"name": name, "description": "A model.", "test": [50.0, 0.2], "seconds": 0.1}
        for name in ("ridge", "forest")
    ]
    content = {"schema": 1, "problem_options": {}, "rows": rows}
    (root / "toy" / "references.json").write_text(json.dumps(content), encoding="utf-8")
    seen = ask_reader(write_html(root), tmp_path)
    for order in ("start", "delta", "name", "first"):
        assert seen["order"][order][0] == "stl"
        assert sorted(seen["order"][order][-2:]) == ["forest", "ridge"]
    # Charts are of the methods.
    assert "ridge" not in seen["texts"]["delta"] + seen["texts"]["time"]


def test_what_is_missing_becomes_a_sentence(tmp_path: Path) -> None:
    place = write_run(tmp_path / "runs", "uw", 0, [50.0, 0.1])
    (place / "history.json").write_text('{"epochs": []}')
    seen = ask_reader(write_html(tmp_path / "runs"), tmp_path)
    assert seen["texts"]["delta"].startswith("Δm is not known")
    assert seen["texts"]["time"].startswith("Time relative to LS is not known")
    assert seen["texts"]["curves-0"].startswith("The runs hold no epochs")
    # Of what is not drawn nothing can be saved.
    assert seen["savable"] == ["weights"]
    assert seen["texts"]["eigenvalues"].startswith("None of the methods")
    assert seen["charts"] == 1


def test_several_problems_are_shown_one_at_a_time(tmp_path: Path) -> None:
    toy(tmp_path / "runs")
    realistic(tmp_path / "runs", problem="another", steps=20, epochs=3, seeds=2)
    seen = ask_reader(write_html(tmp_path / "runs"), tmp_path)
    assert seen["second"].startswith("toy")
    # toy has two metrics and no eigenvalues.
    assert seen["secondCharts"] == 5


HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    '"><svg/onload=alert(2)>',
    "<a href='javascript:alert(3)'>x</a><b>%{y}</b>",
    "{{ 7 * 7 }}{% raw %} ${8 * 8} &lt;",
]


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    evil = HOSTILE[0]
    metrics = [
        {**METRICS[0], "name": HOSTILE[1], "label": HOSTILE[2], "unit": evil, "task": HOSTILE[3]},
        {**METRICS[1], "label": HOSTILE[0]},
    ]
    for number, name in enumerate([*HOSTILE, "ls"]):
        place = write_run(
            root, f"m{number}", 0, [50.0 + number, 0.1], metrics=metrics, problem=evil, folder="p",
            recipe={"description": evil}, options={evil: evil}, problem_options={evil: evil},
            eigenvalues=np.ones((10, 2)),
        )  # fmt: skip
        path = place / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"method": name, "versions": {evil: evil}, "hardware": {"device": evil}}
        path.write_text(json.dumps(config), encoding="utf-8")
    page = write_html(root)
    own = without_plotly(page)
    for name in ("<img", "<svg/", "<a ", "<b>%"):
        assert name not in own
    seen = ask_reader(page, tmp_path)
    assert seen["images"] == 0
    assert seen["links"] == 0
    assert seen["order"]["start"] == sorted([*HOSTILE, "ls"])
    assert HOSTILE[0][:20] in seen["texts"]["time"]
    assert HOSTILE[2][:20] in seen["texts"]["time"]
    assert seen["single"] == [HOSTILE[0] + " (m) lower is better"]
    assert seen["tasks"][0] == HOSTILE[3]
    saved = dict(seen["saved"])
    (picture,) = (text for name, text in saved.items() if name.endswith(".svg"))
    assert not {"script", "image", "a", "img"} & {
        element.tag.rpartition("}")[2] for element in ElementTree.fromstring(picture).iter()
    }


# ------------------------------------------------------------------------------------------------
# Size


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_five_seconds(tmp_path: Path) -> None:
    methods = ["ls", "ntkmtl", *(f"method-{number}" for number in range(23))]
    realistic(tmp_path, methods=methods, seeds=40, steps=2000, epochs=50, stl=False)
    # Time of this process alone, which other processes on the machine do not lengthen.
    start = time.process_time()
    render(build_table(tmp_path))
    page = write_html(tmp_path)
    seconds = time.process_time() - start
    assert seconds < 5
    assert len(without_plotly(page)) < 3_000_000
