"""Architectures over the message-passing network of qm9."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architecture_gates import selecting_gate, softmax_gate, weighted
from architecture_runs import SETTINGS, check_command, check_exact_kernel
from torch import Tensor

from ntkmtl import Balancer
from ntkmtl.bench.paper._settings import differences
from ntkmtl.bench.problems import architectures
from ntkmtl.bench.problems.architectures import Architecture, HardSharing, choose
from ntkmtl.bench.problems.qm9 import QM9, Graphs, MoleculeBatch, prepare, random_molecules
from ntkmtl.bench.problems.qm9 import _problem as qm9
from ntkmtl.bench.problems.qm9._network import MoleculeNetwork, _CarriedGraphs, backbone, head
from ntkmtl.bench.training import train

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "qm9" / "qm9_10k.npz"

K, WIDTH, HIDDEN = 3, 6, 4
REL = 1e-9
NAMES = architectures.names()
SOFT = tuple(name for name in NAMES if name != "hard")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str, **changed: Any) -> Any:
    """Build an architecture in float64, away from where units and selectors are alike."""
    choice = choose(name, {**SETTINGS[name], **changed})
    network = choice.build(backbone(WIDTH, HIDDEN), [partial(head, WIDTH)] * K).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def molecules(count: int) -> Graphs:
    return Graphs(*(part.double() for part in random_molecules(count, atoms=7)))


def in_float64(batch: MoleculeBatch) -> MoleculeBatch:
    return MoleculeBatch(Graphs(*(part.double() for part in batch.graphs)), batch.targets.double())


# ------------------------------------------------------------------------------------------------
# Mixing rules, molecule by molecule, without padding


class Way:
    """What one task, or the shared experts, go along: atoms first, then the molecule."""

    def __init__(self, alone: Graphs) -> None:
        self.alone = alone
        self.read = alone.nodes[0].mean(dim=0)
        self.states: Tensor | None = None

    def run(self, expert: Any) -> Tensor:
        """Return what the next stage of an encoder says: (N, width), then (width,)."""
        if self.states is None:
            found: Tensor = expert(self.alone)[0].T
        else:
            found = expert(_CarriedGraphs(self.states.T[None], self.alone.present))[0]
        return found

    def go_on(self, said: Tensor) -> None:
        self.states, self.read = said, said.mean(dim=0)


def whole(encoder: Any, alone: Graphs) -> Tensor:
    way = Way(alone)
    atoms, molecule = encoder
    way.go_on(way.run(atoms))
    return way.run(molecule)


def mixed_by_hand(name: str, network: Any, alone: Graphs) -> list[Tensor]:
    """Return each task's z of one molecule."""
    read = Way(alone).read
    if name == "hard":
        return [whole(network.trunk, alone)] * K
    if name in ("mmoe", "dselect-k"):
        gate = softmax_gate if name == "mmoe" else selecting_gate
        said = [whole(expert, alone) for expert in network.experts]
        return [weighted(gate(one, read), said) for one in network.gates]
    if name == "cgc":
        (level,) = network.levels
        shared = [whole(expert, alone) for expert in level.shared]
        return [
            weighted(softmax_gate(gate, read), [*(whole(e, alone) for e in own), *shared])
            for gate, own in zip(level.gates, level.own, strict=True)
        ]
    ways = [Way(alone) for _ in range(K)]
    if name == "cross-stitch":
        for number, alpha in enumerate(network.units):
            said = [
                way.run(encoder[number])
                for encoder, way in zip(network.encoders, ways, strict=True)
            ]
            for way, row in zip(ways, alpha, strict=True):
                way.go_on(weighted(row, said))
    else:
        common = Way(alone)
        for level in network.levels:
            shared = [common.run(expert) for expert in level.shared]
            own = [[way.run(e) for e in mine] for mine, way in zip(level.own, ways, strict=True)]
            if level.shared_gate is not None:
                weights = softmax_gate(level.shared_gate, common.read)
                common.go_on(weighted(weights, [*itertools.chain(*own), *shared]))
            for way, gate, mine in zip(ways, level.gates, own, strict=True):
                way.go_on(weighted(softmax_gate(gate, way.read), [*mine, *shared]))
    found = [way.states for way in ways]
    return [z for z in found if z is not None]


@pytest.mark.parametrize("name", NAMES)
def test_molecules_are_mixed_as_by_hand_each_alone(name: str) -> None:
    torch.manual_seed(0)
    network = build(name)
    batch = molecules(4)
    z = network.represent(batch)
    outputs = network.predict(z)
    assert len({int(n) for n in batch.present.sum(1)}) > 1
    for row, present in enumerate(batch.present):
        n = int(present.sum())
        alone = Graphs(
            batch.nodes[row : row + 1, :n],
            batch.edges[row : row + 1, :n, :n],
            batch.linked[row : row + 1, :n, :n],
            batch.present[row : row + 1, :n],
        )
        expected = mixed_by_hand(name, network, alone)
        assert len(expected) == K
        for task in range(K):
            mine = z if isinstance(z, Tensor) else z[task]
            assert mine.shape == (4, WIDTH)
            assert outputs[task].shape == (4,)
            torch.testing.assert_close(mine[row], expected[task], rtol=REL, atol=1e-12)
            said = network.heads[task][0](expected[task])[0]
            torch.testing.assert_close(outputs[task][row], said, rtol=REL, atol=1e-12)


def test_hard_sharing_over_the_stages_is_the_network_of_the_problem() -> None:
    torch.manual_seed(4)
    network = MoleculeNetwork(3, WIDTH, HIDDEN)
    torch.manual_seed(4)
    staged = HardSharing(backbone(WIDTH, HIDDEN), [partial(head, WIDTH)] * 3)
    batch = random_molecules(5, atoms=6)
    assert not network.convolve.root.bias.any()
    pairs = zip(
        staged.predict(staged.represent(batch)),
        network.predict(network.represent(batch)),
        strict=True,
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


# ------------------------------------------------------------------------------------------------
# Parameters, counted by hand from the definitions, at the published size


def linear(before: int, after: int) -> int:
    return before * after + after


TASKS = 11
ATOMS = (
    linear(11, 64)  # embedding
    + linear(5, 128)
    + linear(128, 64 * 64)  # the network that makes matrices of edges
    + linear(64, 64)  # NNConv's own weight and bias
    + 3 * (linear(64, 64) + linear(64, 64))  # gated recurrent unit
)
MOLECULE = 4 * (linear(128, 64) + linear(64, 64)) + linear(128, 64)
ONE = ATOMS + MOLECULE
HEADS = TASKS * linear(64, 1)

COUNTS = {
    "hard": (ONE + HEADS, ONE),
    # An encoder and a head per task; a matrix of 11 x 11 after atoms and after the molecule.
    "cross-stitch": (11 * ONE + 2 * 11 * 11 + HEADS, 11 * ONE + 2 * 11 * 11),
    # Eight experts; a gate per task from the 11 numbers on atoms to weights of the experts.
    "mmoe": (8 * ONE + 11 * 11 * 8 + HEADS, 8 * ONE),
    # One shared expert, one per task; gates over two experts.
    "cgc": (12 * ONE + 11 * 11 * 2 + HEADS, ONE),
    # In two levels. Gates of the second read 64 numbers; the shared one of the first is over all 12
    # experts. Not shared: tasks' second experts, and their gates of both levels.
    "ple": (
        12 * ONE + 11 * (11 + 64) * 2 + 11 * 12 + HEADS,
        12 * ATOMS + MOLECULE + 11 * 12,
    ),
    # Two selectors of three digits and their two weights, linear in 11 numbers and a constant.
    "dselect-k": (8 * ONE + 11 * linear(11, 2 * 3 + 2) + HEADS, 8 * ONE),
}


@pytest.mark.parametrize("name", NAMES)
def test_counts_of_parameters_at_the_published_size(name: str) -> None:
    assert set(COUNTS) == set(NAMES)
    assert COUNTS["hard"][0] == 617_675
    with torch.device("meta"):
        network = choose(name).build(backbone(64, 128), [partial(head, 64)] * TASKS)
    total = sum(p.numel() for p in network.parameters())
    assert (total, sum(p.numel() for p in network.shared_parameters())) == COUNTS[name]


def test_parameters_of_the_default_network_have_the_names_that_they_had() -> None:
    with torch.device("meta"):
        network = MoleculeNetwork(11, 64, 128)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    trunk = {
        "embed": (64, 11),
        "convolve.first": (128, 5),
        "convolve.second": (4096, 128),
        "convolve.root": (64, 64),
        "last": (64, 128),
        **{f"heads.{task}": (1, 64) for task in range(11)},
    }
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in trunk.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for cell, gates, read in (("update", 3, 64), ("readout.cell", 4, 128)):
        expected |= {
            f"{cell}.weight_ih": (gates * 64, read),
            f"{cell}.weight_hh": (gates * 64, 64),
            f"{cell}.bias_ih": (gates * 64,),
            f"{cell}.bias_hh": (gates * 64,),
        }
    assert shapes == expected
    assert sum(math.prod(shape) for shape in shapes.values()) == 617_675


@pytest.mark.parametrize("name", NAMES)
def test_shared_is_what_the_losses_of_several_tasks_reach(name: str) -> None:
    torch.manual_seed(6)
    network: Architecture = build(name)
    parameters = list(network.parameters())
    reached = [0] * len(parameters)
    for output in network.predict(network.represent(molecules(5))):
        found = torch.autograd.grad(
            output.square().sum(), parameters, retain_graph=True, allow_unused=True
        )
        for place, gradient in enumerate(found):
            reached[place] += gradient is not None and bool(gradient.any())
    assert min(reached) >= 1
    expected = {id(p) for p, times in zip(parameters, reached, strict=True) if times > 1}
    shared = list(network.shared_parameters())
    assert {id(p) for p in shared} == expected
    assert len(shared) == len(expected)


def test_new_tensors_are_on_the_device_of_the_inputs() -> None:
    """A tensor made without naming a device would be on the default one, and not fit the others."""
    for name in NAMES:
        network = build(name)
        batch = molecules(2)
        with torch.device("meta"):
            sum(output.sum() for output in network.predict(network.represent(batch))).backward()
        assert {p.grad.device.type for p in network.parameters() if p.grad is not None} == {"cpu"}


# ------------------------------------------------------------------------------------------------
# The problem, on 48 real molecules


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SHARED.exists():
        pytest.skip("needs qm9_10k.npz in ../shared/data")
    place = tmp_path_factory.mktemp("molecules")
    with np.load(SHARED, allow_pickle=False) as archive:
        every = {name: archive[name] for name in archive.files if name != "smiles"}
    atoms, bonds = int(every["N"][:48].sum()), int(every["n_bonds"][:48].sum())
    ends = {"idx": 48, "N": 48, "n_bonds": 48, "y": 48, "Z": atoms, "R": atoms, "bonds": bonds}
    some = {name: array[: ends.get(name)] for name, array in every.items()}
    np.savez(place / "part.npz", **some)
    prepare(place / "part.npz", place / "qm9")
    return place / "qm9"


@pytest.fixture(autouse=True)
def _few_molecules(monkeypatch: pytest.MonkeyPatch) -> None:
    part = qm9._MoleculePart(test=8, val=8, train=32, width=WIDTH, hidden=HIDDEN)
    monkeypatch.setitem(qm9.PARTS, "small", part)


def create(folder: Path, name: str, **options: Any) -> QM9:
    settings = {"architecture_options": SETTINGS.get(name, {}), **options}
    return QM9("small", data=str(folder), architecture=name, **settings)


@pytest.mark.parametrize(
    ("method", "options"),
    [("ls", {}), ("ntkmtl-sr", {"minibatches": 2}), ("ntkmtl", {"minibatches": 2})],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_trains(
    folder: Path, tmp_path: Path, name: str, method: str, options: dict[str, Any]
) -> None:
    problem = create(folder, name)
    recipe = dataclasses.replace(problem.recipe, epochs=1, batch_size=32)
    done = train(
        problem, method, 0, tmp_path / "run", recipe=recipe, method_options=options, threads=1
    )
    assert done.result.steps == 1
    assert len(done.result.test) == 11
    assert all(math.isfinite(value) for value in done.result.test)
    assert done.steps.weights.min() > 0
    if method != "ls":
        assert done.steps.weights.std() > 0


def test_identity_of_the_default_network_stays(folder: Path) -> None:
    expected = {
        "targets": "standardized",
        "data_sha256": QM9("small", data=str(folder)).options["data_sha256"],
        "split": "SHA-256 of the GDB index",
        "model": "message-passing 1",
        "width": WIDTH,
        "hidden": HIDDEN,
        "loss": "mse",
    }
    for problem in (QM9("small", data=str(folder)), create(folder, "hard")):
        assert problem.options == expected
        assert type(problem.model()) is MoleculeNetwork
        assert "rchitecture" not in problem.describe()


@pytest.mark.parametrize("name", SOFT)
def test_identity_and_reports_name_architecture_and_settings(folder: Path, name: str) -> None:
    problem = create(folder, name)
    said = problem.options["architecture"]
    assert said == {"name": name, **choose(name, SETTINGS[name]).settings}
    assert json.loads(json.dumps(problem.options)) == problem.options
    assert f"Architecture {name}: " in problem.describe()
    facts = {
        "recipe": dataclasses.asdict(QM9.recipes["paper"]),
        "sizes": {"train": 110_831, "val": 10_000, "test": 10_000},
        "tasks": list(problem.tasks),
        "problem_options": problem.options,
    }
    assert f"network: {name} here, hard published †" in map(str, differences(facts, "qm9", "qm9"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mtan",
            None,
            "must be one of hard, cross-stitch, mmoe, cgc, ple, dselect-k. Found 'mtan'",
        ),
        ("mmoe", {"expert": 2}, "mmoe has no setting 'expert'"),
        ("dselect-k", {"experts": 6}, r"power of two\. Found experts=6"),
        ("hard", {"experts": 6}, "hard has no setting 'experts'"),
    ],
)
def test_wrong_choices_are_refused(
    folder: Path, name: str, options: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create(folder, name, architecture_options=options)


def test_creating_a_problem_draws_no_random_number(folder: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    create(folder, "ple")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", SOFT)
def test_networks_of_some_tasks(folder: Path, name: str) -> None:
    problem = create(folder, name)
    batch = problem.batch("train", torch.arange(6))
    for tasks in (["cv"], ["u0", "mu"]):
        model = problem.model(tasks)
        z = model.represent(batch)
        assert [tuple(one.shape) for one in z] == [(6, WIDTH)] * len(tasks)
        outputs = model.predict(z)
        assert [tuple(one.shape) for one in outputs] == [(6,)] * len(tasks)
        assert list(problem.losses(outputs, batch, tasks)) == tasks
        assert problem.evaluate(model, "test", tasks).shape == (len(tasks),)


def losses_of(problem: QM9, batch: MoleculeBatch) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(7)
    model = problem.model().double()
    z = model.represent(batch)
    return z, problem.losses(model.predict(z), batch)


@pytest.mark.parametrize("name", NAMES)
def test_sr_reads_each_tasks_own_representation(folder: Path, name: str) -> None:
    problem = create(folder, name)
    batch = in_float64(problem.batch("train", torch.arange(8)))
    z, losses = losses_of(problem, batch)
    expected = []
    for task, loss in enumerate(losses.values()):
        mine = z if isinstance(z, Tensor) else z[task]
        (gradient,) = torch.autograd.grad(loss, mine, retain_graph=True)
        # A mini-batch's mean loss is that of its 4 molecules, half of the batch.
        rows = torch.stack([gradient[:4].sum(0) * 2, gradient[4:].sum(0) * 2])
        expected.append(float(torch.linalg.eigvalsh(rows @ rows.T)[-1]))
    options = {"pooling": "pooled", "minibatches": 2}
    balancer = Balancer("ntkmtl-sr", tasks=list(problem.tasks), **options)
    found = balancer.backward(losses, features=z)
    assert found.eigenvalues is not None
    assert found.eigenvalues.tolist() == pytest.approx(expected, rel=REL)


@pytest.mark.parametrize("name", ["cgc", "mmoe"])
def test_gramian_methods_have_no_common_representation(folder: Path, name: str) -> None:
    problem = create(folder, name)
    z, losses = losses_of(problem, in_float64(problem.batch("test", torch.arange(4))))
    balancer = Balancer("imtl-g", source="representation", tasks=list(problem.tasks))
    with pytest.raises(ValueError, match="source='exact'"):
        balancer.backward(losses, features=z)


@pytest.mark.parametrize("name", NAMES)
def test_the_trainers_exact_kernel_is_that_of_the_shared_parameters(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_exact_kernel(create(folder, name), tmp_path / "run", monkeypatch, 32)


def test_the_command_line_takes_an_architecture(folder: Path, tmp_path: Path) -> None:
    check_command("qm9", folder, tmp_path / "runs", 16)
