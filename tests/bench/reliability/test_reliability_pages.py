"""Names that are out to do harm, through a real training into every page and table."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Problem, Recipe, Split
from ntkmtl.bench.report import FORMATS, build_table, render, write_html
from ntkmtl.bench.training import train

SCRIPT = "<script>alert(1)</script>"
CLOSE = "</script><script>alert(2)</script>"
IMAGE = "\"'><img src=x onerror=alert(3)>"
STYLE = "</style></title><svg/onload=alert(4)><!--"
LINK = "<a href='javascript:alert(5)'>]]>{{ 7 * 7 }}"
HOSTILE = (SCRIPT, CLOSE, IMAGE, STYLE, LINK)


class Model(MultiTaskModel):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(heads))

    def represent(self, batch: Any) -> Tensor:
        return self.trunk(batch).tanh()

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        views = [features] * len(self.heads) if isinstance(features, Tensor) else features
        return [head(z) for head, z in zip(self.heads, views, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.trunk.parameters()


class Hostile(Problem):
    """Every text that a problem may choose is out to do harm."""

    name = SCRIPT
    summary = IMAGE
    tasks = HOSTILE
    metrics = tuple(
        Metric(f"m{number} {text}", task=text, unit=text, label=f"{number} {text}")
        for number, text in enumerate(HOSTILE)
    )
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.01, minibatches=2, description=STYLE)

    @property
    def options(self) -> dict[str, Any]:
        return {text: [text, {text: text}] for text in HOSTILE}

    def size(self, split: Split) -> int:
        return 16

    def batch(self, split: Split, indices: Tensor) -> Tensor:
        return torch.sin(torch.stack([indices + 1.0, indices * 2.0, indices * 3.0], dim=1))

    def model(self, tasks: Sequence[str] | None = None) -> Model:
        return Model(len(tasks or self.tasks))

    def losses(
        self, outputs: Sequence[Tensor], batch: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        names = tasks or self.tasks
        return {
            name: (output[:, 0] - (1 + place) * batch[:, 0]).square().mean()
            for place, (name, output) in enumerate(zip(names, outputs, strict=True))
        }

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        batch = self.batch(split, torch.arange(16))
        found = self.losses(model.predict(model.represent(batch)), batch, tasks)
        return torch.stack([loss.detach() for loss in found.values() if loss is not None]).double()


class Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        assert "alert" not in data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for method in ("ls", "ntkmtl-sr"):
        place = folder / "p" / method / "seed-0"
        train(Hostile(), method, 0, place, threads=1, record={"every": 1})
        # As another program, or a person, may have written it.
        path = place / "config.json"
        config = json.loads(path.read_text("utf-8"))
        config["method_options"] = {text: text for text in HOSTILE}
        config["versions"] = config["hardware"] = {IMAGE: CLOSE}
        if method == "ls":
            path.write_text(json.dumps(config), encoding="utf-8")
            continue
        path.write_text(json.dumps({**config, "method": CLOSE}), encoding="utf-8")
    return folder


def pages(runs: Path, out: Path) -> Iterator[tuple[str, str]]:
    yield "report", write_html(runs, out / "report.html").read_text("utf-8")
    said = CliRunner().invoke(app, ["analyze", str(runs), "--output", str(out / "analysis.html")])
    assert said.exit_code == 0, said.output
    yield "analysis", (out / "analysis.html").read_text("utf-8")


def test_pages_show_hostile_names_as_text(runs: Path, tmp_path: Path) -> None:
    for name, text in pages(runs, tmp_path):
        page = Page(text)
        kinds = {tag for tag, _ in page.elements}
        assert not kinds & {"img", "iframe", "object", "embed", "link", "base", "form"}, name
        assert all(not key.startswith("on") for _, found in page.elements for key in found), name
        for tag, found in page.elements:
            for key in ("href", "src", "action", "xlink:href"):
                assert found.get(key) is None or (found[key] or "").startswith("#"), (tag, found)
        # The data and two scripts, of which the policy names both by their hash.
        assert len(page.scripts) == 3, name
        assert json.loads(page.scripts[0])
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
        for script in page.scripts[1:]:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy, name
        assert "default-src 'none'" in policy
        assert "unsafe-inline'" not in policy.partition("style-src")[0]
        # They are there, as texts: else the test would look at pages without them.
        shown = " ".join(page.texts)
        assert SCRIPT in shown, name
        assert "onload=alert(4)" in shown or "onerror=alert(3)" in shown, name
        assert "{{ 7 * 7 }}" in text or name == "analysis"
        assert "49]]" not in shown


@pytest.mark.parametrize("format", FORMATS)
def test_tables_hold_hostile_names_as_text(runs: Path, format: str) -> None:
    text = render(build_table(runs), format)
    assert "alert" in text
    if format == "markdown":
        assert "<" not in text.replace("<br>", "")
    if format == "json":
        assert json.loads(text)


def test_names_name_no_place_outside_the_folder(tmp_path: Path) -> None:
    """A method, problem or task cannot climb out of ``--out`` by its name."""
    from ntkmtl.bench.runs import run_folder

    out = (tmp_path / "out").resolve()
    for name in ("../../etc", "/etc/passwd", "..\\..\\x", "a/../../b", "C:\\x", *HOSTILE):
        place = run_folder(out, name, name, 0, name)
        assert place.resolve().is_relative_to(out)
        assert len(place.relative_to(out).parts) == 4
    for name in ("..", ".", ""):
        with pytest.raises(ValueError, match="needs a name"):
            run_folder(out, name, "ls", 0)
