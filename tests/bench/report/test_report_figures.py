"""Figures as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from report_folders import METRICS, realistic, toy, write_run

from ntkmtl.bench.report import save_figures

if TYPE_CHECKING:
    from pathlib import Path


def test_both_figures_in_both_formats(tmp_path: Path) -> None:
    root = realistic(tmp_path / "runs", steps=50, epochs=3)
    paths = save_figures(root, tmp_path / "out")
    assert [path.name for path in paths] == [
        "qm9-mini-delta-m.png",
        "qm9-mini-delta-m.svg",
        "qm9-mini-eigenvalues.png",
        "qm9-mini-eigenvalues.svg",
    ]
    for path in paths:
        content = path.read_bytes()
        head = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert content.startswith(head)
        assert len(content) > 10_000


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    root = realistic(tmp_path / "runs", steps=50, epochs=3, seeds=1)
    first = save_figures(root, tmp_path / "a", formats=["svg"])
    second = save_figures(root, tmp_path / "b", formats=["svg"])
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_figures_that_nothing_is_known_for_are_left_out(tmp_path: Path) -> None:
    assert [p.name for p in save_figures(toy(tmp_path), tmp_path / "out")] == [
        "toy-delta-m.png",
        "toy-delta-m.svg",
    ]
    write_run(tmp_path / "bare", "ls", 0, [50.0, 0.1])
    assert save_figures(tmp_path / "bare", tmp_path / "out") == []


def test_a_method_without_eigenvalues_is_an_error(tmp_path: Path) -> None:
    root = realistic(tmp_path, steps=20, epochs=2, seeds=1)
    with pytest.raises(ValueError, match=r"'uw' has no eigenvalues.*: ntkmtl, ntkmtl-sr"):
        save_figures(root, tmp_path / "out", method="uw")


def test_dollars_and_underscores_in_names_are_text(tmp_path: Path) -> None:
    metrics = [{**METRICS[0], "label": "_$x_{$"}, {**METRICS[1], "label": "$\\frac$ \\$"}]
    for task, value in (("seg", 50.0), ("depth", 0.2)):
        write_run(tmp_path, "stl", 0, [value], task=task, metrics=metrics)
    place = write_run(
        tmp_path, "ls", 0, [50.0, 0.1], metrics=metrics, eigenvalues=np.zeros((10, 2))
    )
    path = place / "config.json"
    path.write_text(path.read_text().replace('"ls"', '"$a_{$"'))
    assert len(save_figures(tmp_path, tmp_path / "out")) == 4
