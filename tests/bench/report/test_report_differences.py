"""Settings in which runs differ, as the page lists them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_folders import write_run

from ntkmtl.bench.report import write_html
from ntkmtl.bench.report._page import differing_settings
from ntkmtl.bench.report._runs import load


def found(root: Path) -> dict[str, Any]:
    (runs,) = load(root).values()
    return differing_settings(runs)


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    for method in ("ls", "si"):
        for seed in (0, 1):
            write_run(tmp_path, method, seed, [50.0, 0.2], options={method: 1})
    write_run(tmp_path, "stl", 0, [50.0], task="seg")
    assert found(tmp_path) == {}
    assert "None: all runs have the same recipe" in write_html(tmp_path).read_text("utf-8")


def test_values_and_who_has_them(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2], recipe={"epochs": 30})
    write_run(tmp_path, "ls", 1, [50.0, 0.2], recipe={"epochs": 30})
    write_run(tmp_path, "si", 0, [50.0, 0.2], recipe={"epochs": 60, "clip": 1.0})
    write_run(tmp_path, "si", 1, [50.0, 0.2], recipe={"epochs": 30}, options={"scale": 2})
    write_run(tmp_path, "stl", 0, [50.0], task="seg", recipe={"epochs": 30})
    assert found(tmp_path) == {
        "recipe: epochs": [(30, ["ls", "si seed 1", "stl"]), (60, ["si seed 0"])],
        "recipe: clip": [(None, ["ls", "si seed 1", "stl"]), (1.0, ["si seed 0"])],
        # Other methods have other options: these are compared within a method.
        "option of si: scale": [(None, ["si seed 0"]), (2, ["si seed 1"])],
    }
    text = write_html(tmp_path).read_text("utf-8")
    row = text[text.index('<th scope="row" rowspan="2">recipe: clip</th>') :][:200]
    assert "<td>–</td><td>ls, si seed 1, stl</td>" in row


def test_hardware_and_versions_count(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    place = write_run(tmp_path, "si", 0, [50.0, 0.2])
    config = json.loads((place / "config.json").read_text("utf-8"))
    config["versions"]["torch"] = "2.13.0"
    config["hardware"]["threads"] = 4
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert list(found(tmp_path)) == ["hardware: threads", "version: torch"]
