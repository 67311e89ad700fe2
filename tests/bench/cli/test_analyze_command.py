"""``ntkmtl analyze``, recording in runs, and the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import call, good
from report_studies import study
from typer.testing import Result

from ntkmtl.analysis import Recorder
from ntkmtl.bench.report._analysis import StudyError, read_study, study_of, write_page
from ntkmtl.bench.runs import load_runs

TOY = "toy_problem:Toy"
TRAINING = Path(__file__).parents[1] / "training"
RUN = Path("toy/ls/seed-0")


def compare(*more: str) -> Result:
    return call(
        *("compare", TOY, "--jobs", "1", "--epochs", "2", "--seeds", "1", "--no-stl"),
        *("--methods", "ls", "--out", "o", *more),
    )


def numbers(folder: Path) -> list[str]:
    """The files of a run but for times."""
    result = json.loads((folder / "result.json").read_text())
    history = json.loads((folder / "history.json").read_text())["epochs"]
    return [
        json.dumps([result["test"], result["val"]]),
        json.dumps([[e["train_losses"], e["val"]] for e in history]),
        hashlib.sha256((folder / "steps.npz").read_bytes()).hexdigest(),
    ]


# ------------------------------------------------------------------------------------------------
# The command


def test_a_problem_is_trained_recorded_and_shown(tmp_path: Path) -> None:
    asked = ["analyze", TOY, "--epochs", "2", "--every", "3", "--seeds", "2", "--jobs", "1"]
    result = good(*asked, "-o", "p/page.html")
    assert "ls " in result.stdout
    assert "ntkmtl-sr" in result.stdout
    assert "imbalance" in result.stdout
    assert f"Page: {Path('p/page.html')}" in result.stderr
    told = json.loads((tmp_path / "p/page.json").read_text())
    assert [method["method"] for method in told["methods"]] == ["ls", "ntkmtl-sr"]
    ls, sr = told["methods"]
    assert ls["seeds"] == [0, 1]
    assert ls["source"] == "exact"
    assert ls["step"] == [0, 3, 6, 9]
    assert ls["imbalance"]["before"] == pytest.approx(ls["imbalance"]["after"])
    assert sr["imbalance"]["after"] != pytest.approx(sr["imbalance"]["before"])
    assert sorted(task for group in ls["groups"] for task in group) == ["a", "b", "c"]
    assert len(ls["predicted_steps"]) == 4

    again = good(*asked, "--json", "--groups", "3")
    assert "4 complete already" in again.stderr
    told = json.loads(again.stdout)
    assert told["page"] == str(Path("analysis/analysis.html"))
    assert told["methods"][0]["groups"] == [["a"], ["b"], ["c"]]


def test_files_of_runs_and_data_are_not_written_over() -> None:
    good(
        "compare",
        TOY,
        "--jobs",
        "1",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--out",
        "o",
        "--record",
        "5",
    )
    Path("data.csv").write_text("a\n1\n")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for output in ("o/compare.html", f"o/{RUN}/config.html", "o/record.png", "data.csv"):
        refused = call("analyze", "o", "-o", output)
        assert refused.exit_code == 2, output
        assert "give another name" in refused.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    for _ in range(2):
        good("analyze", "o", "-o", "o/page.html")


def test_what_was_not_asked_for_again_is_left_out() -> None:
    asked = ["analyze", TOY, "--epochs", "1", "--every", "3", "--jobs", "1", "--json"]
    good(*asked, "--methods", "ls,si")
    told = json.loads(good(*asked, "--methods", "si").stdout)
    assert [method["method"] for method in told["methods"]] == ["si"]


def test_a_folder_of_recorded_runs(tmp_path: Path) -> None:
    assert compare("--record", "4").exit_code == 0
    assert "imbalance" in good("analyze", "o").stdout
    assert (tmp_path / "o/analysis.html").exists()
    told = json.loads(good("analyze", Path("o") / RUN, "--json").stdout)
    assert told["methods"][0]["source"] == "representation"
    assert told["methods"][0]["every"] == 4
    good("run", TOY, "--method", "si", "--epochs", "1", "--record", "2", "--out", "o")
    told = json.loads(good("analyze", "o", "--json").stdout)
    assert [method["method"] for method in told["methods"]] == ["ls", "si"]
    assert "different recipes" in told["notes"][0]


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    rows = [f"{i},{2 * i % 7},{i % 5},{i * i % 11}" for i in range(60)]
    (tmp_path / "data.csv").write_text("\n".join(["x,y,a,b", *rows]))
    told = json.loads(
        good(
            *("analyze", "table", "--csv", "data.csv", "--targets", "a,b", "--epochs", "1"),
            *("--types", "a=regression,b=regression", "--set", "ntkmtl-sr.exponent=0.25"),
            *("--every", "1", "--jobs", "1", "--json"),
        ).stdout
    )
    assert told["tasks"] == ["a", "b"]
    (run,) = load_runs(tmp_path / "analysis" / "table" / "ntkmtl-sr")[0]
    assert run.config.method_options["exponent"] == 0.25


def test_without_records_it_says_how_to_record() -> None:
    assert compare().exit_code == 0
    refused = call("analyze", "o")
    assert refused.exit_code == 2
    assert "none with record.json" in refused.stderr
    assert "--record 50" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["analyze", "nowhere"], "nowhere"),
        (["analyze", "no/where"], "is not a folder"),
        (["analyze", "."], "no complete run"),
        (["analyze", ".", "--epochs", "3"], "--epochs is for a problem to train; . is a folder"),
        (["analyze", "table"], "csv"),
        (["analyze", TOY, "--methods", "nash"], "unknown method 'nash'"),
        (["analyze", TOY, "--every", "0"], "--every"),
        (["analyze", TOY, "--seed-list", "1,x"], "--seed-list takes whole numbers"),
        (["analyze", TOY, "--source", "other"], "other"),
        (["compare", TOY, "--record", "0"], "--record"),
    ],
)
def test_what_users_get_wrong_is_one_line(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_too_many_groups_and_a_damaged_record_are_told() -> None:
    assert compare("--record", "4").exit_code == 0
    refused = call("analyze", "o", "--groups", "4")
    assert refused.exit_code == 2
    assert "groups must be in 1..3" in refused.stderr
    record = Path("o") / RUN / "record.json"
    record.write_text("{")
    refused = call("analyze", "o")
    assert refused.exit_code == 2
    assert str(record) in refused.stderr


# ------------------------------------------------------------------------------------------------
# Recording in runs


@pytest.mark.parametrize("source", ["representation", "exact"])
def test_a_record_changes_no_number_of_the_run(tmp_path: Path, source: str) -> None:
    from toy_problem import Toy

    from ntkmtl.bench.training import train

    for method in ("ls", "ntkmtl-sr"):
        train(Toy(), method, 3, tmp_path / f"{method}-plain", threads=1)
        record = {"every": 2, "source": source}
        train(Toy(), method, 3, tmp_path / f"{method}-recorded", threads=1, record=record)
        assert numbers(tmp_path / f"{method}-plain") == numbers(tmp_path / f"{method}-recorded")


def test_a_stopped_run_ends_with_the_record_of_one_that_never_was(tmp_path: Path) -> None:
    from toy_problem import Toy

    from ntkmtl.bench.training import RunInterrupted, train

    asked: dict[str, Any] = {"threads": 1, "record": {"every": 2}}
    train(Toy(), "ntkmtl-sr", 0, tmp_path / "whole", **asked)
    steps = iter(range(1, 100))
    with pytest.raises(RunInterrupted):
        train(
            Toy(), "ntkmtl-sr", 0, tmp_path / "cut", should_stop=lambda: next(steps) == 7, **asked
        )
    assert not (tmp_path / "cut/record.json").exists()
    train(Toy(), "ntkmtl-sr", 0, tmp_path / "cut", **asked)
    whole, cut = ((tmp_path / name / "record.json").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_checkpoint_with_another_record_is_not_gone_on_from(tmp_path: Path) -> None:
    from toy_problem import Toy

    from ntkmtl.bench.training import RunInterrupted, train

    with pytest.raises(RunInterrupted):
        train(Toy(), "ls", 0, tmp_path, threads=1, should_stop=lambda: True)
    with pytest.warns(RuntimeWarning, match="was written with another record"):
        train(Toy(), "ls", 0, tmp_path, threads=1, record={"every": 2})
    assert Recorder.load(tmp_path / "record.json").steps[0] == 0


def test_a_complete_run_without_the_record_is_trained_again_only_if_told() -> None:
    assert compare().exit_code == 0
    for record, said in (("4", "without a record"), ("4", "without a record")):
        refused = compare("--record", record)
        assert refused.exit_code == 2
        assert said in refused.stderr
    assert compare("--record", "4", "--overwrite").exit_code == 0
    assert "1 complete already" in compare("--record", "4").stderr
    refused = compare("--record", "2")
    assert refused.exit_code == 2
    assert "record.every is 4, asked for 2" in refused.stderr
    # Not asked for, a record that is there does no harm.
    assert "1 complete already" in compare().stderr


# ------------------------------------------------------------------------------------------------
# The page

HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7*7 }}\x1b[31m"


def test_the_page_loads_nothing_and_its_policy_names_every_script(tmp_path: Path) -> None:
    text = write_page(study(), tmp_path / "page.html").read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"<(img|link|iframe)\b|\bsrc=", text[: text.index('id="data"')])


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    hostile = study(HOSTILE, (HOSTILE, "b", HOSTILE + "2"))
    text = write_page(hostile, tmp_path / "page.html").read_text("utf-8")
    assert "onerror=alert(1)&gt;" in text
    assert "<img" not in text[: text.index("Plotly")]
    assert "{{ 7*7 }}" in text
    assert "\x1b" not in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert json.loads(data)[0]["tasks"][1] == "b"
    assert json.loads(data)[0]["methods"][1]["name"].startswith("</script><img")


def test_the_page_shows_the_numbers_of_the_study(tmp_path: Path) -> None:
    found = study()
    text = write_page(found, tmp_path / "page.html").read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    (charts,) = json.loads(data)
    record = found.methods[1]
    assert charts["methods"][1]["step"] == record.step.tolist()
    weighted = record.weights.square() * record.max_eigenvalues
    for task in range(3):
        assert charts["methods"][1]["tasks"]["weighted"][task] == pytest.approx(
            weighted[:, task].tolist(), rel=1e-3
        )
    windows = charts["methods"][1]["affinity"]
    assert (windows[0]["first"], windows[0]["last"]) == (0, 110)
    assert windows[0]["values"][0][1] == pytest.approx(
        record.mean_affinity()[0, 1].item(), rel=1e-3
    )
    assert len(windows) == 7
    assert "reduced recipe" in text


def test_runs_that_do_not_belong_together_are_refused() -> None:
    ours, theirs = study("one"), study("two")
    entries = [(s.configs[0], Recorder(10)) for s in (ours, theirs)]
    with pytest.raises(StudyError, match=r"2 problems \(one, two\)"):
        study_of(entries)
    with pytest.raises(StudyError, match="holds no step"):
        study_of(entries[:1])
    with pytest.raises(FileNotFoundError):
        read_study("nowhere")


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.mark.skipif(not BROWSER, reason="needs a browser of the Chromium family")
@pytest.mark.parametrize(("width", "steps"), [(1200, 12), (390, 12), (390, 1)])
def test_a_browser_draws_every_chart(tmp_path: Path, width: int, steps: int) -> None:
    probe = """
    addEventListener("load", () => setTimeout(() => {
      for (const id of ["method", "rank", "pairs"]) {
        const select = document.querySelector(`[data-choice="${id}"]`);
        select.value = select.options[select.options.length - 1].value;
        select.dispatchEvent(new Event("change"));
      }
      document.querySelector('[data-control="weighted"]').click();
      const slider = document.querySelector('[data-control="window"]');
      slider.value = slider.max;
      slider.dispatchEvent(new Event("input"));
      document.title = JSON.stringify({
        charts: document.querySelectorAll(".js-plotly-plot").length,
        empty: document.querySelectorAll(".chart.empty").length,
        wide: document.documentElement.scrollWidth - innerWidth,
        images: document.querySelectorAll("img").length,
        window: document.querySelector("output").textContent,
      });
    }, 300));
    """
    page = write_page(study(HOSTILE, (HOSTILE, "b", "c" * 60), steps), tmp_path / "page.html")
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    text = page.read_text("utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    page.write_text(text.replace("</body>", f"<script>{probe}</script></body>"), "utf-8")
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"),
            *("--enable-logging=stderr", "--v=0"),
            *(f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    seen = json.loads(title[1])
    assert "CONSOLE" not in done.stderr or "Error" not in done.stderr, done.stderr
    assert seen["charts"] == 6
    assert seen["empty"] == seen["images"] == 0
    assert seen["wide"] <= 0
    assert seen["window"] == ("steps 100 to 110" if steps > 1 else "step 0")
