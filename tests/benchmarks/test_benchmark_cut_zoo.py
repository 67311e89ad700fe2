"""Rules for the cut beside exact kernels."""

from __future__ import annotations

import json
from pathlib import Path

import cut_zoo
import pytest
import torch
from cut_zoo_graphs import GRAPHS
from sidebyside.tables import fill_page
from torch import nn

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_numbers_that_are_kept() -> None:
    page = (DOCS / "cut.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "cut" / "measured.json").read_text(encoding="utf-8"))
    assert set(report["graphs"]) == set(GRAPHS)
    assert fill_page(page, cut_zoo.table(report)) == page


@pytest.mark.parametrize("name", GRAPHS)
def test_every_network_has_losses_and_exact_eigenvalues(name: str) -> None:
    torch.manual_seed(0)
    graph = GRAPHS[name]()
    losses = graph.losses()
    values = cut_zoo.exact_eigenvalues(losses, graph.parameters)
    assert len(losses) >= 2
    assert bool((values > 0).all())


def test_both_rules_are_squares_of_gradients_on_a_trunk() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 4), [nn.Linear(4, 1) for _ in range(3)]
    z = trunk(torch.randn(5, 3)).relu()
    losses = [head(z).square().mean() for head in heads]
    expected = torch.stack(
        [torch.autograd.grad(loss, z, retain_graph=True)[0].square().sum() for loss in losses]
    ).double()
    for rule in (cut_zoo.by_two_or_more, cut_zoo.by_all):
        found = rule(losses)
        assert found is not None
        torch.testing.assert_close(found, expected)


def test_by_all_ends_where_the_first_task_leaves() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 4)
    heads = [nn.Linear(4, 1) for _ in range(3)]
    y = first(torch.randn(5, 3)).tanh()
    z = second(y).tanh()
    losses = [heads[0](y).mean(), heads[1](z).square().mean(), heads[2](z).mean()]
    at_y = [torch.autograd.grad(loss, y, retain_graph=True)[0] for loss in losses]
    found = cut_zoo.by_all(losses)
    assert found is not None
    torch.testing.assert_close(found, torch.stack([g.double().square().sum() for g in at_y]))
    two = cut_zoo.by_two_or_more(losses)
    assert two is not None
    at_z = torch.autograd.grad(losses[1], z, retain_graph=True)[0]
    torch.testing.assert_close(two[1], at_z.double().square().sum())


def test_error_takes_the_mean_off() -> None:
    truth = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert cut_zoo.error(7.0 * truth, truth) == pytest.approx(0.0)
    # log weights are -log(lambda) / 2: half the logarithm of 4 apart, split over two tasks.
    ones = torch.ones(2, dtype=torch.float64)
    assert cut_zoo.error(ones, truth) == pytest.approx(0.25 * torch.tensor(4.0).log().item())
    assert cut_zoo.error(None, truth) is None


def test_a_few_networks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "measured.json"
    names = ["VAE", "energy and forces", "three losses along the depth"]
    try:
        cut_zoo.main(["--seeds", "1", "--steps", "0", "2", "--json", str(path), "--graphs", *names])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "| energy and forces | 2 | bypass | bypass | bypass | bypass |" in printed
    cut_zoo.main(["--render", str(path)])
    assert capsys.readouterr().out == printed
