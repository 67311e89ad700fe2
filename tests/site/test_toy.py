"""The toy in the browser computes what the library computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from site_browser import BROWSER, in_browser

from ntkmtl import Balancer

ROOT = Path(__file__).parents[2]
SETTINGS = [{"scale": 100, "exponent": 0.5}, {"scale": 0.01, "exponent": 0.25}]
STEPS = 40

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not BROWSER, reason="needs a browser of the Chromium family"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("toy")
    script = (ROOT / "docs" / "_static" / "toy.js").read_text("utf-8")
    page = '<!doctype html><meta charset="utf-8"><div id="toy"></div>'
    (folder / "toy.html").write_text(f"{page}<script>{script}\nwindow.Toy = Toy;</script>", "utf-8")
    body = f"""
      const [inner, errors] = await open("/toy.html", 390);
      const runs = {json.dumps(SETTINGS)}.map((settings) => Object.fromEntries(
        inner.Toy.METHODS.map((name) =>
          [name, inner.Toy.run(name, {{...settings, steps: {STEPS}}})])));
      const page = inner.document, before = page.getElementById("toy-plane").toDataURL();
      const slider = page.getElementById("toy-scale");
      slider.value = -1;
      slider.dispatchEvent(new inner.Event("input"));
      return {{
        errors, runs, tasks: inner.Toy.TASKS, start: inner.Toy.START,
        drawn: JSON.parse(page.getElementById("toy").dataset.drawn),
        moved: before !== page.getElementById("toy-plane").toDataURL(),
      }};
    """
    value, _ = in_browser(folder, body, timeout=60)
    return value


def test_sliders_redraw(found) -> None:
    assert found["errors"] == []
    assert found["drawn"] == {"scale": 0.1, "exponent": 0.5}
    assert found["moved"]


@pytest.mark.parametrize("method", ["ls", "ntkmtl", "si", "mgda"])
@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_every_step_is_the_librarys(found, case: int, method: str) -> None:
    settings = SETTINGS[case]
    tasks = [
        [torch.tensor(task[key], dtype=torch.float64) for key in ("rows", "targets")]
        for task in found["tasks"]
    ]
    theta = torch.tensor(found["start"], dtype=torch.float64, requires_grad=True)
    options = {"exponent": settings["exponent"]} if method == "ntkmtl" else {}
    balancer = Balancer(method, **options)
    for step, seen in enumerate(found["runs"][case][method]):
        torch.testing.assert_close(
            torch.tensor(seen["theta"], dtype=torch.float64), theta.detach(), rtol=1e-6, atol=1e-8
        )
        losses = [(rows @ theta - targets).square().mean() for rows, targets in tasks]
        losses[1] = settings["scale"] * losses[1]
        theta.grad = None
        out = balancer.backward(losses)
        wanted = torch.tensor(seen["weights"], dtype=torch.float64)
        torch.testing.assert_close(wanted, out.weights.double(), rtol=1e-5, atol=1e-6)
        if out.eigenvalues is not None:
            wanted = torch.tensor(seen["eigenvalues"], dtype=torch.float64)
            torch.testing.assert_close(wanted, out.eigenvalues.double(), rtol=1e-5, atol=0)
        assert theta.grad is not None
        with torch.no_grad():
            theta -= 0.12 * 0.96**step * theta.grad / theta.grad.norm()
