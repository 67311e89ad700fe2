"""Cost and accuracy of Balancer()."""

from __future__ import annotations

import json
from pathlib import Path

import auto
import auto_schedules
import auto_study
import pytest
import torch
from auto_workloads import WORKLOADS
from sidebyside.tables import fill_page
from torch import nn

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_numbers_that_are_kept() -> None:
    page = (DOCS / "auto.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "auto" / "measured.json").read_text(encoding="utf-8"))
    assert set(report["cases"]) == set(WORKLOADS)
    assert fill_page(page, auto.table(report)) == page


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "compiled"])
def test_every_network_trains_at_both_scales(name: str) -> None:
    for scale in auto.SCALES:
        run = auto.Run(name, scale, 0, balanced=True)
        assert run.step() > 0
        assert all(bool(p.isfinite().all()) for p in run.workload.parameters)


def test_one_network_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "measured.json"
    arguments = ["--steps", "4", "--repetitions", "1", "--seeds", "1", "--json", str(path)]
    try:
        auto.main(["--workloads", "vae", *arguments])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.count("| VAE |") == 2
    auto.main(["--render", str(path)])
    assert capsys.readouterr().out == printed
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured: begin -->\n<!-- measured: end -->\nb\n", encoding="utf-8")
    auto.main(["--render", str(path), "--page", str(page)])
    assert printed.strip() in page.read_text(encoding="utf-8")


def test_exact_eigenvalues_count_what_two_losses_share() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 4), [nn.Linear(4, 1) for _ in range(2)]
    z = trunk(torch.randn(5, 3)).tanh()
    losses = [head(z).square().mean() for head in heads]
    parameters = [*trunk.parameters(), *heads[0].parameters(), *heads[1].parameters()]
    found = auto_study.exact_eigenvalues(losses, parameters)
    for loss, value in zip(losses, found, strict=True):
        own = torch.autograd.grad(loss, list(trunk.parameters()), retain_graph=True)
        assert float(value) == pytest.approx(sum(float(g.square().sum()) for g in own), rel=1e-5)
    free = auto_study.free_eigenvalues(losses)
    assert free is not None
    at_z = [torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses]
    torch.testing.assert_close(free, torch.stack([g.double().square().sum() for g in at_z]))


def test_an_estimate_that_is_the_truth_has_no_error() -> None:
    logs = torch.linspace(0.0, 1.0, 40, dtype=torch.float64)[:, None] * torch.tensor([1.0, -1.0])
    logs = logs.double()
    truth = auto_study.log_weights(auto_study.smoothed(logs))
    run = {"exact": logs, "free": None, "auto": truth + 3.0, "period": 14}
    errors = auto_study.errors(run)["errors"]
    assert errors["`Balancer()`"] == pytest.approx(0.0, abs=1e-12)
    assert errors["representation"] is None
    assert errors["equal weights"] > errors["exact, each 10th step, held"] > 0


def test_schedules_are_those_of_the_balancer(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = auto_study.record("vae", 20, 0)
    logs = recorded["exact"]
    at = auto_schedules.looks(len(logs), recorded["period"], 1.5)
    weights = auto_study.log_weights(auto_schedules.averaged(logs, at, 0.5))
    found = recorded["auto"] - recorded["auto"].mean(dim=1, keepdim=True)
    torch.testing.assert_close(found, weights, rtol=0.0, atol=1e-4)
    threads = torch.get_num_threads()
    try:
        auto_schedules.main(
            ["--workloads", "vae", "--steps", "6", "--counted", "4", "--seeds", "1"]
        )
    finally:
        torch.set_num_threads(threads)
    assert len(capsys.readouterr().out.splitlines()) == 3 + 3 * 2 * len(auto_schedules.DECAYS)
