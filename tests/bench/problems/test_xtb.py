"""Energy, forces, dipole and charges: the data, the network's symmetries, kernels and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer
from ntkmtl.bench import problems
from ntkmtl.bench.problems import check
from ntkmtl.bench.problems.xtb._problem import DATA, GROUPS, ForceBatch, read
from ntkmtl.bench.training import train
from ntkmtl.bench.training.comparison import changed_recipe

TASKS = ("energy", "forces", "dipole", "charges")


def network(tasks: tuple[str, ...] = TASKS) -> Any:
    torch.manual_seed(0)
    return problems.create("xtb").model(tasks).double()


def some(count: int = 6) -> ForceBatch:
    """Geometries of all groups, in float64."""
    batch = problems.create("xtb").batch("train", torch.arange(0, 1215, 1215 // count)[:count])
    return ForceBatch(*(p.double() if p.is_floating_point() else p for p in batch))


# --------------------------------------------------------------------------- data


def test_data() -> None:
    found = read()
    assert {split: len(part.energy) for split, part in found.splits.items()} == {
        "train": 1215,
        "val": 255,
        "test": 255,
    }
    assert DATA.stat().st_size < 2_000_000
    for split, part in found.splits.items():
        assert set(found.groups[split].tolist()) == set(range(len(GROUPS)))
        # No net force, no net charge; padding is empty.
        assert float(part.forces.sum(dim=1).abs().max()) < 1e-4
        assert float(part.charges.sum(dim=1).abs().max()) < 1e-4
        assert float(part.forces[part.mask == 0].abs().sum()) == 0
        # Bound molecules: an atomization energy of a few eV per atom.
        assert -9 < float(part.energy.min()) < float(part.energy.max()) < -2
        ethanol = part.elements[found.groups[split] == 0]
        assert sorted(ethanol[0, :9].tolist()) == [0] * 6 + [1, 1, 3]


def test_splits_share_no_geometry() -> None:
    seen = {tuple(p.flatten().tolist()) for p in read().splits["train"].positions}
    for split in ("val", "test"):
        for positions in read().splits[split].positions:
            assert tuple(positions.flatten().tolist()) not in seen


def test_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing.*make_xtb"):
        read(tmp_path / "none.npz")
    damaged = tmp_path / "xtb.npz"
    damaged.write_bytes(DATA.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        read(damaged)
    with np.load(DATA) as archive:
        arrays = dict(archive)
    np.savez(damaged, **{**arrays, "atoms": arrays["atoms"] + 1})
    with pytest.raises(ValueError, match="counts 21180 atoms of 19455"):
        read(damaged)


# --------------------------------------------------------------------------- network


def test_forces_are_the_slope_of_the_energy() -> None:
    model, batch, step = network(), some(3), 1e-5
    count = batch.mask.sum(dim=1)
    forces = model.predict(batch)[1]
    for atom, axis in ((0, 0), (3, 1), (5, 2)):
        ends = []
        for sign in (1, -1):
            positions = batch.positions.clone()
            positions[:, atom, axis] += sign * step
            ends.append(model.predict(batch._replace(positions=positions))[0] * count)
        slope = (ends[0] - ends[1]).detach() / (2 * step)
        torch.testing.assert_close(forces[:, atom, axis], -slope, rtol=1e-6, atol=1e-7)


def rotation() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    found, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    return found


def test_symmetries() -> None:
    model, batch, turn = network(), some(), rotation()
    energy, forces, dipole, charges = model.predict(batch)
    moved = batch.positions @ turn + torch.tensor([1.0, -2.0, 0.5])
    found = model.predict(batch._replace(positions=moved * batch.mask[..., None]))
    exact = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(found[0], energy, **exact)
    torch.testing.assert_close(found[1], forces @ turn, **exact)
    torch.testing.assert_close(found[2], dipole @ turn, **exact)
    torch.testing.assert_close(found[3], charges, **exact)
    assert float(charges.detach().sum(dim=1).abs().max()) < 1e-12
    assert float(forces.detach().sum(dim=1).abs().max()) < 1e-12


def test_padding_does_not_matter() -> None:
    model, batch = network(), some(1)
    atoms = int(batch.mask.sum())
    short = ForceBatch(*(p[:, :atoms] if p.ndim > 1 and p.shape[1] == 21 else p for p in batch))
    for whole, cut in zip(model.predict(batch), model.predict(short), strict=True):
        if whole.ndim > 1 and whole.shape[1] == 21:
            assert float(whole[:, atoms:].detach().abs().sum()) == 0
            whole = whole[:, :atoms]
        torch.testing.assert_close(whole, cut, rtol=1e-9, atol=1e-12)


def test_a_task_alone_has_the_same_kind_of_output() -> None:
    batch = some(2)
    for task, output in zip(TASKS, network().predict(batch), strict=True):
        assert network((task,)).predict(batch)[0].shape == output.shape
    order = ("charges", "energy")
    assert [o.shape for o in network(order).predict(batch)] == [(2, 21), (2,)]


def test_eval_mode_and_no_grad() -> None:
    model, batch = network(), some(2)
    expected = [output.detach() for output in model.predict(batch)]
    with torch.no_grad():
        for found, value in zip(model.eval().predict(batch), expected, strict=True):
            torch.testing.assert_close(found.detach(), value)


# --------------------------------------------------------------------------- the problem


def test_exact_eigenvalues_equal_a_dense_oracle() -> None:
    problem, model, batch = problems.create("xtb"), network(), some()
    out = Balancer("ntkmtl").backward(problem.losses(model.predict(batch), batch))
    named = dict(model.named_parameters())
    grads = {}
    for task in TASKS:
        loss = problem.losses(model.predict(batch), batch)[task]
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        grads[task] = {n: g for n, g in zip(named, found, strict=True) if g is not None}
    for task, value in zip(TASKS, out.eigenvalues, strict=True):
        # Shared is what two or more tasks reach.
        others = [set(grads[other]) for other in TASKS if other != task]
        shared = [g for n, g in grads[task].items() if any(n in o for o in others)]
        square = sum(float(g.square().sum()) for g in shared)
        assert float(value) == pytest.approx(square, rel=1e-6)
    auto = Balancer("ntkmtl-auto").backward(problem.losses(model.predict(batch), batch))
    torch.testing.assert_close(auto.weights, out.weights, rtol=1e-6, atol=0)


def test_losses_and_metrics_by_hand() -> None:
    problem = problems.create("xtb")

    class Off:
        """A network that is off by 1 everywhere."""

        training = True

        def eval(self) -> None: ...
        def train(self, mode: bool) -> None: ...
        def parameters(self) -> Any:
            return iter(())

        def represent(self, batch: ForceBatch) -> ForceBatch:
            return batch

        def predict(self, batch: ForceBatch) -> list[Tensor]:
            off = batch.mask
            return [
                batch.energy + 1,
                batch.forces + off[..., None],
                batch.dipole + torch.tensor([3.0, 4.0, 0.0]),
                batch.charges - off,
            ]

    batch = problem.batch("train", torch.arange(0, 1215, 300))
    losses = problem.losses(Off().predict(batch), batch)
    assert [float(losses[task]) for task in TASKS] == pytest.approx([1, 1, 25 / 3, 1], rel=1e-5)
    # 1 eV per atom, 1 eV / Angstrom, 5 e Angstrom in mD, 1 e.
    found = problem.evaluate(Off(), "val").tolist()
    assert found == pytest.approx([1000, 1000, 5 * 4803.20471, 1000], rel=1e-5)
    counts = problem.counts(batch, ("forces", "energy"))
    assert counts.tolist() == [batch.mask.sum(1).tolist(), [1.0] * len(batch.energy)]


def test_it_keeps_the_protocol_and_trains(tmp_path: Path) -> None:
    problem = problems.create("xtb")
    check(problem)
    recipe = changed_recipe(problem.recipe, epochs=1)
    run = train(problem, "ntkmtl-auto", seed=0, recipe=recipe, out_dir=tmp_path)
    torch.manual_seed(0)
    before = problem.evaluate(problem.model(), "val")
    assert all(after < 0.7 * b for after, b in zip(run.result.val, before.tolist(), strict=True))
    assert "1,215 geometries" in problem.describe()
