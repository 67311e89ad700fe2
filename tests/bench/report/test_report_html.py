"""The page: what is in its file, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folders import METRICS, realistic, toy, write_run

from ntkmtl.bench.report import build_table, render, write_html
from ntkmtl.bench.report._html import embed
from ntkmtl.bench.runs import RunFileError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # Any name but that of a file leads nowhere, so that a page that loads something fails.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=20000",
    "--dump-dom",
)

# Runs in the page after its own scripts, does what a reader does, and leaves what it saw in the
# document for the test to read.
PROBE = """
addEventListener("load", () => setTimeout(() => {
  const article = document.querySelector("article:not([hidden])");
  const chart = (kind) => article.querySelector(`[data-chart="${kind}"]`);
  const methods = () =>
    [...article.querySelectorAll(".results tbody th")].map((cell) => cell.textContent);
  const heads = [...article.querySelectorAll(".results thead button")];
  const head = (text) => heads.find((each) => each.textContent.startsWith(text));
  const legend = (kind) => [...article.querySelectorAll(`[data-legend="${kind}"] button`)];
  const lines = (kind) => chart(kind).querySelectorAll(".scatterlayer .trace path.js-line").length;
  const shapes = {};
  const texts = {};
  const clipped = [];
  for (const element of article.querySelectorAll("[data-chart]")) {
    const kind = element.dataset.chart;
    shapes[kind] = [...element.querySelectorAll(".js-line, .point path")].filter(
      (path) => (path.getAttribute("d") || "").length > 4).length;
    texts[kind] = element.textContent;
    const box = element.getBoundingClientRect();
    for (const text of element.querySelectorAll("svg text")) {
      const inner = text.getBoundingClientRect();
      if (inner.width && (inner.left < box.left - 1 || inner.right > box.right + 1 ||
          inner.bottom > box.bottom + 1)) clipped.push(kind + ": " + text.textContent);
    }
  }
  const seen = { shapes, texts, clipped };
  seen.tooWide = document.documentElement.scrollWidth - innerWidth;
  seen.resources = performance.getEntriesByType("resource").length;
  seen.images = document.querySelectorAll("img, script[src], link[href], iframe").length;
  seen.links = document.querySelectorAll("a").length;
  seen.charts = document.querySelectorAll(".js-plotly-plot").length;
  seen.order = { start: methods() };
  head("Δm").click();
  seen.order.delta = methods();
  seen.sorted = head("Δm").parentElement.getAttribute("aria-sort");
  head("Δm").click();
  seen.order.deltaTwice = methods();
  heads[0].click();
  seen.order.name = methods();
  heads[1].click();
  seen.order.first = methods();
  if (!chart("curves").classList.contains("empty")) {
    seen.shown = lines("curves");
    const buttons = legend("curves");
    buttons.at(-1).click();
    seen.none = lines("curves");
    buttons.at(-2).click();
    seen.all = lines("curves");
    buttons[1].dispatchEvent(new MouseEvent("click", { bubbles: true, detail: 1 }));
    seen.without = lines("curves");
    buttons[1].dispatchEvent(new MouseEvent("click", { bubbles: true, detail: 2 }));
    seen.alone = lines("curves");
    seen.pressed = legend("curves").map((each) => each.getAttribute("aria-pressed"));
    const choice = article.querySelector('[data-choice="curves"]');
    choice.selectedIndex = choice.options.length - 1;
    choice.dispatchEvent(new Event("change"));
    seen.title = chart("curves").querySelector(".ytitle").textContent;
    const log = article.querySelector('[data-log="curves"]');
    seen.log = log.checked;
    log.click();
    seen.logAfter = log.checked;
  }
  const other = article.querySelector('[data-choice="weights"]');
  if (other.options.length) {
    seen.methods = [...other.options].map((option) => option.textContent);
    other.selectedIndex = 0;
    other.dispatchEvent(new Event("change"));
    seen.weights = lines("weights");
    const windows = () => article.querySelector('[data-window="weights"]').textContent;
    seen.window = windows();
    article.querySelector('[data-smooth="weights"]').click();
    seen.windowAfter = windows();
  }
  const problems = [...document.querySelectorAll("[data-show]")];
  if (problems.length) {
    problems.at(-1).click();
    seen.second = document.querySelector("article:not([hidden]) h1").textContent.trim();
    seen.secondCharts = document.querySelectorAll("article:not([hidden]) .js-plotly-plot").length;
  }
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
}, 500));
"""


@cache
def browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"no browser on this machine (looked for {', '.join(BROWSERS)})")


def console(output: str) -> list[str]:
    return [line for line in output.splitlines() if ":CONSOLE" in line]


def dump(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """Load a page and return its document and what it wrote to the console."""
    done = subprocess.run(
        [browser(), *FLAGS, *flags, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    return done.stdout, console(done.stderr)


def probe(page: Path, tmp_path: Path, *flags: str) -> dict[str, Any]:
    """Load a copy of a page that drives itself; return what it saw."""
    text = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    text = text.replace("</body>", f"<script>{PROBE}</script></body>")
    copy = tmp_path / "probe.html"
    copy.write_text(text, encoding="utf-8")
    document, lines = dump(copy, tmp_path / "profile", *flags)
    assert lines == []
    found = re.search(r'<pre id="probe">(.*?)</pre>', document, re.DOTALL)
    assert found, "the page did not finish loading"
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


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
    assert not re.search(r"(src|href|action)\s*=|@import|url\(|integrity", own)
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
    curve = data["curves"]["0"]
    assert curve["epoch"] == [1, 2]
    assert curve["mean"] == [[12.0, 20.0], [2.0, 0.6]]
    # 10 and 14: deviation sqrt(8) over sqrt(2).
    assert curve["stderr"] == [[2.0, 0.0], [1.0, 0.1]]


def test_curves_of_stl_join_the_runs_of_its_tasks(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.1])
    write_run(tmp_path, "stl", 0, [60.0], task="seg", history=[[55.0], [60.0]])
    write_run(tmp_path, "stl", 0, [0.2], task="depth", history=[[0.4], [0.2]])
    (data,) = data_of(write_html(tmp_path))
    assert data["methods"][0]["baseline"] is True
    assert data["curves"]["0"] == {
        "epoch": [1, 2],
        "mean": [[55.0, 60.0], [0.4, 0.2]],
        "stderr": None,
    }
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
    assert len(data["curves"]["0"]["epoch"]) == 240
    assert data["curves"]["0"]["epoch"][0] == 1
    assert data["curves"]["0"]["epoch"][-1] == 1000


def test_the_data_of_twenty_methods_are_small(tmp_path: Path) -> None:
    methods = ["ls", "ntkmtl", *(f"method-{number}" for number in range(18))]
    page = write_html(realistic(tmp_path, methods=methods, steps=500, epochs=100))
    assert len(without_plotly(page)) < 1_500_000


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
    assert len(re.findall(r'<div class="chart[^"]*js-plotly-plot"', document)) == 5


@pytest.mark.parametrize("width", [1280, 500])
def test_a_reader_at_work(tmp_path: Path, width: int) -> None:
    root = realistic(tmp_path / "runs")
    table = build_table(root)
    seen = probe(write_html(root), tmp_path, f"--window-size={width},1000")

    assert seen["charts"] == 5
    assert seen["shapes"]["delta"] >= 11
    assert seen["shapes"]["time"] >= 12
    assert seen["shapes"]["curves"] >= 8
    assert seen["shapes"]["weights"] >= 11
    assert seen["shapes"]["eigenvalues"] >= 11
    assert seen["clipped"] == []
    assert seen["tooWide"] <= 0
    assert seen["resources"] == 0
    assert seen["images"] == 0

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
    assert seen["title"] == "c_v (cal/mol·K), lower is better"
    assert seen["log"] != seen["logAfter"]
    assert seen["methods"] == [method for method in start if method != "stl"]
    assert seen["weights"] == 11
    # 600 steps make 240 points of 2.5 steps; smoothing takes in five to either side.
    assert seen["window"] == " and over windows of 28 steps"
    assert seen["windowAfter"] == " and over windows of 3 steps"


def test_higher_is_better_sorts_the_other_way(tmp_path: Path) -> None:
    seen = probe(write_html(toy(tmp_path / "runs")), tmp_path)
    assert seen["order"]["first"] == ["stl", "ntkmtl", "ls", "uw"]


def test_what_is_missing_becomes_a_sentence(tmp_path: Path) -> None:
    place = write_run(tmp_path / "runs", "uw", 0, [50.0, 0.1])
    (place / "history.json").write_text('{"epochs": []}')
    seen = probe(write_html(tmp_path / "runs"), tmp_path)
    assert seen["texts"]["delta"].startswith("Δm is not known")
    assert seen["texts"]["time"].startswith("Time relative to LS is not known")
    assert seen["texts"]["curves"].startswith("The runs hold no validation metrics")
    assert seen["texts"]["eigenvalues"].startswith("None of the methods")
    assert seen["charts"] == 1


def test_several_problems_are_shown_one_at_a_time(tmp_path: Path) -> None:
    toy(tmp_path / "runs")
    realistic(tmp_path / "runs", problem="another", steps=20, epochs=3, seeds=2)
    seen = probe(write_html(tmp_path / "runs"), tmp_path)
    assert seen["second"].startswith("toy")
    # toy has no eigenvalues.
    assert seen["secondCharts"] == 4


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
    seen = probe(page, tmp_path)
    assert seen["images"] == 0
    assert seen["links"] == 0
    assert seen["order"]["start"] == sorted([*HOSTILE, "ls"])
    assert HOSTILE[0][:20] in seen["texts"]["time"]
    assert HOSTILE[2][:20] in seen["texts"]["time"]
    assert seen["title"].startswith(HOSTILE[0][:30])


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
