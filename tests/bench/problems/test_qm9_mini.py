from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from ntkmtl.bench.problems import create
from ntkmtl.bench.problems.base import batches
from ntkmtl.bench.problems.qm9_mini import (
    FeatureBatch,
    MiniMolecules,
    QM9Mini,
    Scaling,
    invariants,
    read,
)

PAPER_LABELS = ["μ", "α", "ε_HOMO", "ε_LUMO", "⟨R²⟩", "ZPVE", "U₀", "U", "H", "G", "c_v"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def problem() -> QM9Mini:
    return QM9Mini()


@pytest.fixture(scope="module")
def molecules() -> MiniMolecules:
    return read()[0]


def shuffled(molecules: MiniMolecules, seed: int) -> MiniMolecules:
    """Turn, shift and reorder every molecule in its own way."""
    random = np.random.default_rng(seed)
    positions, order = molecules.positions.copy(), np.arange(len(molecules.numbers))
    for start, size in zip(molecules.start, molecules.atoms, strict=True):
        atoms = slice(start, start + size)
        turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
        positions[atoms] = positions[atoms] @ turn + random.normal(scale=5, size=3)
        order[atoms] = start + random.permutation(size)
    return dataclasses.replace(
        molecules, positions=positions[order], numbers=molecules.numbers[order]
    )


def test_tasks_and_metrics(problem: QM9Mini) -> None:
    assert len(problem.tasks) == 11
    assert [metric.label for metric in problem.metrics] == PAPER_LABELS
    assert [metric.task for metric in problem.metrics] == list(problem.tasks)
    units = [metric.unit for metric in problem.metrics]
    assert units == ["D", "a₀³", "meV", "meV", "a₀²", *["meV"] * 5, "cal/(mol K)"]
    assert not any(metric.higher_is_better for metric in problem.metrics)
    assert [problem.size(split) for split in ("train", "val", "test")] == [3000, 500, 500]
    assert problem.recipe.batch_size % problem.recipe.minibatches == 0


def test_options_are_json_and_tell_targets_apart(problem: QM9Mini) -> None:
    raw = create("qm9-mini", targets="raw")
    assert json.loads(json.dumps(problem.options)) == problem.options
    assert problem.options == QM9Mini().options
    assert problem.options != raw.options
    assert len(problem.options["data_sha256"]) == 64
    assert "standardized" in problem.describe()
    assert "raw" in raw.describe()


def test_standardized_by_the_training_molecules(problem: QM9Mini) -> None:
    labels = problem.batch("train", torch.arange(3000)).targets.double()
    torch.testing.assert_close(labels.mean(0), torch.zeros(11).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        labels.std(0, correction=0), torch.ones(11).double(), atol=1e-5, rtol=0
    )


def test_raw_targets_are_those_of_torch_geometric(molecules: MiniMolecules) -> None:
    raw = QM9Mini(targets="raw")
    labels = torch.cat([raw.batch(s, torch.arange(raw.size(s))).targets for s in raw._rows])
    torch.testing.assert_close(labels, torch.from_numpy(molecules.properties()).float())


def test_batch_takes_the_molecules_asked_for(problem: QM9Mini) -> None:
    indices = torch.tensor([7, 0, 7, 499])
    batch = problem.batch("test", indices)
    whole = problem.batch("test", torch.arange(500))
    for part, all_of_it in zip(batch, whole, strict=True):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, all_of_it[indices])


@pytest.mark.parametrize("tasks", [None, ["u0"], ["cv", "mu"]])
def test_shapes(problem: QM9Mini, tasks: list[str] | None) -> None:
    heads = len(tasks or problem.tasks)
    model = problem.model(tasks)
    batch = problem.batch("train", torch.arange(12))
    z = model.represent(batch)
    assert z.shape == (12, 96)
    outputs = model.predict(z)
    assert [output.shape for output in outputs] == [(12, 1)] * heads
    for one, other in zip(outputs, model.predict([z.clone() for _ in outputs]), strict=True):
        torch.testing.assert_close(one, other)
    losses = problem.losses(outputs, batch, tasks)
    assert list(losses) == list(tasks or problem.tasks)
    assert all(loss is not None and loss.shape == () for loss in losses.values())


def test_losses_are_mean_squared_errors_whatever_tasks_are_asked_for(problem: QM9Mini) -> None:
    batch = problem.batch("train", torch.arange(30))
    outputs = list(torch.randn(11, 30, 1).unbind(0))
    losses = problem.losses(outputs, batch)
    for column, (task, output) in enumerate(zip(problem.tasks, outputs, strict=True)):
        expected = ((output[:, 0] - batch.targets[:, column]) ** 2).mean()
        torch.testing.assert_close(losses[task], expected)
    some = ["h", "alpha"]
    subset = problem.losses([outputs[problem.tasks.index(task)] for task in some], batch, some)
    assert subset == {task: losses[task] for task in some}


def test_heads_are_independent_and_trunk_is_shared(problem: QM9Mini) -> None:
    model = problem.model()
    batch = problem.batch("train", torch.arange(20))
    losses = problem.losses(model.predict(model.represent(batch)), batch)
    shared = list(model.shared_parameters())
    heads = [list(head.parameters()) for head in model.heads]
    assert {id(p) for p in shared}.isdisjoint(id(p) for head in heads for p in head)
    assert len(shared) + sum(map(len, heads)) == len(list(model.parameters()))
    for position, loss in enumerate(losses.values()):
        assert loss is not None
        everything = [*shared, *(p for head in heads for p in head)]
        grads = torch.autograd.grad(loss, everything, retain_graph=True, allow_unused=True)
        assert all(grad is not None and grad.abs().sum() > 0 for grad in grads[: len(shared)])
        reached = [grad is not None for grad in grads[len(shared) :]]
        assert [i // 2 for i, hit in enumerate(reached) if hit] == [position, position]


def test_model_comes_from_the_global_random_state(problem: QM9Mini) -> None:
    torch.manual_seed(3)
    one = problem.model().state_dict()
    torch.manual_seed(3)
    two = problem.model().state_dict()
    three = problem.model().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["embed.weight"], three["embed.weight"])


def test_samples_do_not_see_each_other(problem: QM9Mini) -> None:
    model = problem.model()
    together = model.represent(problem.batch("train", torch.arange(10)))
    alone = torch.cat(
        [model.represent(problem.batch("train", torch.tensor([i]))) for i in range(10)]
    )
    torch.testing.assert_close(together, alone)


def test_turning_shifting_and_reordering_atoms_changes_nothing(
    problem: QM9Mini, molecules: MiniMolecules
) -> None:
    scaling = Scaling.fit(invariants(molecules).rows(range(3000)))
    some = molecules.take(np.r_[np.arange(150), np.flatnonzero(molecules.index == 3)])
    model = problem.model().double()

    def represent(variant: MiniMolecules) -> torch.Tensor:
        inputs = scaling.apply(invariants(variant))
        tensors = [torch.from_numpy(part).double() for part in inputs]
        return model.represent(FeatureBatch(*tensors, targets=torch.zeros(len(variant), 11)))

    with torch.no_grad():
        reference = represent(some)
        moved = represent(shuffled(some, seed=1))
        stretched = represent(dataclasses.replace(some, positions=some.positions * 1.01))
    assert (moved - reference).abs().max() < 1e-3
    assert (stretched - reference).abs().max() > 0.05


def test_prepared_inputs_are_those_of_the_features(
    problem: QM9Mini, molecules: MiniMolecules
) -> None:
    features = invariants(molecules)
    inputs = Scaling.fit(features.rows(range(3000))).apply(features)
    batch = problem.batch("val", torch.arange(500))
    for part, tensor in zip(inputs, batch, strict=False):
        np.testing.assert_array_equal(part[3000:3500], tensor.numpy())
    assert all(np.isfinite(part).all() for part in inputs)


def test_too_many_heavy_atoms_are_refused(molecules: MiniMolecules) -> None:
    chain = dataclasses.replace(
        molecules.take(np.array([0])),
        atoms=np.array([10]),
        numbers=np.full(10, 6),
        positions=np.arange(30.0).reshape(10, 3),
    )
    with pytest.raises(ValueError, match="1 to 9 heavy atoms"):
        invariants(chain)


@pytest.mark.parametrize("targets", ["standardized", "raw"])
@pytest.mark.parametrize("tasks", [None, ["lumo"], ["u0", "mu"]])
def test_evaluate_equals_a_plain_mean_absolute_error(
    targets: str, tasks: list[str] | None, molecules: MiniMolecules
) -> None:
    problem = create("qm9-mini", targets=targets)
    model = problem.model(tasks)
    model.train()
    errors = problem.evaluate(model, "test", tasks)
    assert model.training
    assert errors.dtype == torch.float64

    truth = molecules.properties()
    center, spread = truth[:3000].mean(0), truth[:3000].std(0)
    if targets == "raw":
        center, spread = np.zeros(11), np.ones(11)
    with torch.no_grad():
        outputs = model.predict(model.represent(problem.batch("test", torch.arange(500))))
    names = list(tasks or problem.tasks)
    expected = []
    for metric in problem.metrics:
        if metric.task in names:
            column = problem.tasks.index(metric.task)
            said = outputs[names.index(metric.task)][:, 0].double().numpy()
            error = np.abs(said * spread[column] + center[column] - truth[3500:, column]).mean()
            expected.append(error * (1000 if metric.unit == "meV" else 1))
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-9)


def test_evaluate_keeps_the_mode(problem: QM9Mini) -> None:
    model = problem.model()
    model.eval()
    problem.evaluate(model, "val")
    assert not model.training


def test_wrong_numbers_of_heads_and_unknown_tasks(problem: QM9Mini) -> None:
    model = problem.model(["mu", "cv"])
    batch = problem.batch("train", torch.arange(4))
    z = model.represent(batch)
    with pytest.raises(ValueError, match="3 views of z for 2 heads"):
        model.predict([z, z, z])
    with pytest.raises(ValueError, match="2 outputs for 11 tasks"):
        problem.losses(model.predict(z), batch)
    with pytest.raises(ValueError, match="2 outputs for 11 tasks"):
        problem.evaluate(model, "val")
    with pytest.raises(ValueError, match=r"no task is named 'gap'\. Known: mu, alpha"):
        problem.model(["gap"])
    with pytest.raises(ValueError, match="once each"):
        problem.model(["mu", "mu"])
    with pytest.raises(ValueError, match="at least one"):
        problem.model([])


def train(problem: QM9Mini, epochs: int) -> torch.Tensor:
    torch.manual_seed(0)
    model = problem.model()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for indices in batches(problem.size("train"), 60, generator):
            batch = problem.batch("train", indices)
            losses = problem.losses(model.predict(model.represent(batch)), batch).values()
            optimizer.zero_grad()
            torch.stack([loss for loss in losses if loss is not None]).sum().backward()
            optimizer.step()
    return problem.evaluate(model, "val")


def test_two_epochs_beat_a_constant_everywhere(problem: QM9Mini, molecules: MiniMolecules) -> None:
    errors = train(problem, epochs=2).numpy()
    truth = molecules.properties()
    unit = np.array([1000.0 if metric.unit == "meV" else 1.0 for metric in problem.metrics])
    constant = np.abs(truth[3000:3500] - np.median(truth[:3000], axis=0)).mean(0) * unit
    assert (errors < 0.9 * constant).all()
    # Polarisability, <R^2>, energies and heat capacity are learned to a fifth within two epochs.
    assert (errors[[1, 4, 5, 6, 7, 8, 9, 10]] < 0.35 * constant[[1, 4, 5, 6, 7, 8, 9, 10]]).all()


def test_training_is_deterministic(problem: QM9Mini) -> None:
    assert torch.equal(train(problem, epochs=1), train(QM9Mini(), epochs=1))
