"""The gallery: which samples are shown, what is said of them, and their pictures."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from report_browser import ask
from report_folders import write_run
from typer.testing import CliRunner

from ntkmtl.bench import load, problems
from ntkmtl.bench.cli.app import app
from ntkmtl.bench.problems.base import Prediction, Sample
from ntkmtl.bench.report import _gallery as gallery
from ntkmtl.bench.report import write_html
from ntkmtl.bench.report._runs import load as load_folder
from ntkmtl.bench.training import train

MEASURE = (Path(__file__).parent / "report_measure.js").read_text(encoding="utf-8")


def decoded(address: str) -> np.ndarray[Any, Any]:
    kind, _, data = address.partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(imread(io.BytesIO(base64.b64decode(data)), format="png"))[..., :3]


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gallery")
    problem = problems.create("qm9-mini")
    recipe = replace(problem.recipe, epochs=1, batch_size=250)
    for seed in (0, 1):
        train(problem, "ls", seed, root / f"qm9-mini/ls/seed-{seed}", recipe=recipe, threads=1)
    return root


def test_the_molecules_furthest_off_are_shown(molecules: Path) -> None:
    (runs,) = load_folder(molecules).values()
    found = gallery.gallery_of(runs)
    # By the obvious way: the run with the better mean rank on validation, all errors in numpy.
    best = min(runs.done, key=lambda run: sum(
        mine > other.result.val[i]
        for other in runs.done for i, mine in enumerate(run.result.val)
    ))  # fmt: skip
    network = load(best)
    said, truth = network.predict("test"), network.truth("test")
    errors = np.stack(
        [
            np.abs(said[task].values.numpy() - truth[task].numpy()) / truth[task].numpy().std()
            for task in network.tasks
        ],
        axis=1,
    )
    order = np.argsort(-errors.mean(1))[:8]
    names = [network.problem.sample("test", int(i)).name for i in order]
    assert [card["name"] for card in found["cards"]] == names
    first = found["cards"][0]
    tasks = [network.tasks[i] for i in np.argsort(-errors[order[0]])[:4]]
    assert [line[0] for line in first["lines"]] == tasks
    wanted = float(truth[tasks[0]][order[0]])
    number = first["lines"][0][2].split()[0].replace("−", "-").replace(",", "")
    assert float(number) == pytest.approx(wanted, rel=1e-3)
    assert found["told"].startswith(f"ls, seed {best.config.seed}, the best on validation; ")
    assert "all 500 of the test split" in found["told"]


def test_the_page_shows_a_gallery_where_it_is_asked_for(molecules: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(molecules), "--gallery", "-o", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text("utf-8")
    assert text.count("base64,PHN2Zy") == 8
    seen = ask(page, MEASURE, tmp_path, width=390)
    del seen["inSight"]
    assert {key: value for key, value in seen.items() if value} == {}
    assert "base64,PHN2Zy" not in write_html(molecules, page).read_text("utf-8")


def test_rows_of_a_table_are_numbered_as_predictions_are(tmp_path: Path) -> None:
    rows = [f"{a},{a % 3},{7 * a % 50},{'yes' if a % 2 else 'no'}" for a in range(60)]
    (tmp_path / "houses.csv").write_text("\n".join(["area,rooms,price,sold", *rows]))
    problem = problems.create("table", csv=tmp_path / "houses.csv", targets="price,sold")
    recipe = replace(problem.recipe, epochs=1)
    train(problem, "ls", 0, tmp_path / "runs/table/ls/seed-0", recipe=recipe, threads=1)
    (runs,) = load_folder(tmp_path / "runs").values()
    found = gallery.gallery_of(runs)
    assert "from 1, in the order in which ntkmtl predict RUN --split test" in found["told"]
    network = load(runs.done[0])
    truth = network.truth("test")
    for card in found["cards"]:
        place = int(card["name"].removeprefix("test sample ")) - 1
        wanted = {task: said for task, _, said in card["lines"]}
        assert float(wanted["price"]) == float(truth["price"][place])
        assert wanted["sold"] == ("no", "yes")[int(truth["sold"][place])]


def test_without_a_network_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.1])
    with pytest.raises(ValueError, match=r"no gallery of toy: no run kept its network"):
        write_html(tmp_path, gallery=True)


def test_errors_of_numbers_and_classes() -> None:
    truth = torch.tensor([1.0, 3.0, math.nan], dtype=torch.float64)
    found = gallery._errors(Prediction(torch.tensor([2.0, 3.0, 5.0])), truth)
    # Labels 1 and 3 have the standard deviation 1.
    assert found.tolist()[:2] == [1.0, 0.0]
    assert math.isnan(found[2])
    shares = torch.tensor([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]])
    said = Prediction(torch.tensor([1, 0, 0]), ("no", "yes"), shares)
    found = gallery._errors(said, torch.tensor([0, 0, -1]))
    assert found.tolist()[:2] == pytest.approx([0.75, 0.1])
    assert math.isnan(found[2])
    line = gallery._line("sold", said, torch.tensor([0, 0, -1]), 0, {})
    assert line == ("sold", "yes (75 %)", "no")


def test_dates_are_shown_as_such() -> None:
    said = Prediction(torch.tensor([18256.9889509, 1.0], dtype=torch.float64), dates=True)
    line = gallery._line("day", said, torch.tensor([18420.0, 2.0]), 0, {"day": "days"})
    assert line == ("day", "2019-12-26 23:44:05", "2020-06-07 00:00:00")
    assert gallery._line("day", said, torch.tensor([18420.0, 2.0]), 1, {})[1:] == (
        "1970-01-02",
        "1970-01-03",
    )


def test_numbers_are_short() -> None:
    shown = [gallery._number(value) for value in (-123456.7, 0.0123456, 12.3456, 1e12)]
    assert shown == ["−123,457", "0.01235", "12.35", "1e+12"]


def test_frames_show_image_prediction_and_truth_of_each_task() -> None:
    truth = {
        "segmentation": torch.tensor([[[0, -1], [1, 2]]]),
        "depth": torch.tensor([[[1.0, 2.0], [3.0, math.nan]]]),
        "normals": torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2),
    }
    said = {
        "segmentation": Prediction(torch.tensor([[[0, 1], [1, 1]]]), ("a", "b", "c")),
        "depth": Prediction(torch.full((1, 2, 2), 2.0)),
        "normals": Prediction(torch.zeros(1, 3, 2, 2)),
    }
    sample = Sample("test sample 1", torch.full((3, 2, 2), 0.5))
    network: Any = SimpleNamespace(problem=SimpleNamespace(sample=lambda split, index: sample))
    card = gallery._frame_card(network, gallery._Seen(torch.tensor([0]), said, truth), 0)
    assert [caption for _, caption in card["pictures"]] == [
        "image",
        "segmentation, predicted",
        "segmentation, true",
        "depth, predicted",
        "depth, true",
        "normals, predicted",
        "normals, true",
    ]
    shown = [decoded(address) for address, _ in card["pictures"]]
    gray = pytest.approx(0.6, abs=0.01)
    assert shown[0] == pytest.approx(0.5, abs=0.01)
    # A class has one color everywhere, and what has no label is gray.
    assert (shown[1][0, 0] == shown[2][0, 0]).all()
    assert (shown[1][1, 0] == shown[2][1, 0]).all()
    assert shown[2][0, 1] == gray
    # Prediction and truth of depth share their scale: 2 is in the middle of 1 and 3.
    assert (shown[3][0, 0] == shown[4][0, 1]).all()
    assert shown[4][1, 1] == gray
    # x, y, z of (0, 0, 1) as red, green, blue; a normal of zero length has no direction.
    assert shown[6][0, 0] == pytest.approx([0.5, 0.5, 1.0], abs=0.01)
    assert shown[5][0, 0] == gray


def test_large_pictures_are_thinned() -> None:
    assert decoded(gallery.rgb_picture(np.zeros((3, 300, 900)))).shape == (60, 180, 3)


def test_a_molecule_is_drawn_with_its_bonds() -> None:
    # Water: 0.96 Angstrom between O and H, 104.5 degrees.
    angle = math.radians(104.5)
    places = np.array(
        [[0, 0, 0], [0.96, 0, 0], [0.96 * math.cos(angle), 0.96 * math.sin(angle), 0]]
    )
    address = gallery.molecule_picture(np.array([8, 1, 1]), places)
    svg = ElementTree.fromstring(base64.b64decode(address.partition("base64,")[2]))
    kinds = [element.tag.rpartition("}")[2] for element in svg]
    assert sorted(kinds) == ["circle", "circle", "circle", "line", "line"]
