"""The recorder: its summaries, its state and its file."""

from __future__ import annotations

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer
from ntkmtl.analysis import (
    Recorder,
    RecordFileError,
    ResidualNTK,
    Snapshot,
    condition_number,
    residual_ntk,
)
from ntkmtl.kernel import ExtendedNTK

TASKS = ("a", "b", "c")


def kernel_of(rows: Tensor, n: int) -> ExtendedNTK:
    k = len(rows) // n
    return ExtendedNTK((rows @ rows.T).reshape(k, n, k, n))


def snapshot(step: int, present: tuple[int, ...] = (0, 1, 2), **more: Any) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    p, n = len(present), 2
    parts: dict[str, Any] = {
        "tasks": TASKS,
        "losses": torch.rand(p, dtype=torch.float64, generator=generator),
        "weights": torch.rand(3, dtype=torch.float64, generator=generator),
        "kernel": kernel_of(torch.randn(p * n, 7, dtype=torch.float64, generator=generator), n),
    }
    return Snapshot(step=step, present=present, **{**parts, **more})


def recorded(*steps: int) -> Recorder:
    recorder = Recorder(every=5)
    for step in steps:
        recorder(snapshot(step))
    return recorder


def same(a: Recorder, b: Recorder) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(
        torch.equal(x[key].nan_to_num(nan=-1.0), y[key].nan_to_num(nan=-1.0))
        if isinstance(x[key], Tensor)
        else x[key] == y[key]
        for key in x
    )


def test_which_steps_are_wanted() -> None:
    recorder = Recorder(every=50)
    assert [step for step in range(160) if recorder.wants(step)] == [0, 50, 100, 150]
    for name in ("every", "minibatches"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
            Recorder(**{name: 0})


def test_a_source_or_pooling_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ValueError, match="source must be 'representation' or 'exact', found 'exct'"
    ):
        Recorder(source="exct")
    with pytest.raises(ValueError, match="pooling must be one of pooled, blockwise, kernel"):
        Recorder(pooling="mean")  # type: ignore[arg-type]


def test_summaries_are_those_of_the_kernel_by_hand() -> None:
    # Gradients 3 e1, 3 e1 + 4 e2 of n = 1: Gramian [[9, 9], [9, 25]], cosine 9 / 15.
    rows = torch.tensor([[3.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.6], dtype=torch.float64)
    recorder = Recorder(1)
    recorder(Snapshot(0, ("a", "b"), (0, 1), torch.ones(2).double(), weights, kernel_of(rows, 1)))
    assert recorder["max_eigenvalues"].tolist() == [[9, 25]]
    assert recorder["effective_ranks"].tolist() == [[1, 1]]
    torch.testing.assert_close(
        recorder["affinity"][0],
        torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64),
        rtol=1e-12,
        atol=0,
    )
    # Trace 34, determinant 144; weighted [[9, 5.4], [5.4, 9]] has 14.4 and 3.6.
    root = math.sqrt(17**2 - 144)
    assert recorder["condition"].item() == pytest.approx((17 + root) / (17 - root), rel=1e-9)
    assert recorder["condition_weighted"].item() == pytest.approx(4, rel=1e-9)
    assert recorder["rank"].tolist() == recorder["rank_weighted"].tolist() == [2]
    assert recorder["kernel_minibatches"].tolist() == [1]


def test_a_task_without_labels_is_unknown_and_changes_no_other() -> None:
    recorder = Recorder(1)
    whole = snapshot(0)
    assert whole.kernel is not None
    part = ExtendedNTK(whole.kernel.values[::2][:, :, ::2])
    recorder(snapshot(0, (0, 2), losses=whole.losses[::2], weights=whole.weights, kernel=part))
    full = recorded(0)
    for name in ("losses", "max_eigenvalues", "effective_ranks", "participation_ratios"):
        assert recorder[name][0, 1].isnan()
        torch.testing.assert_close(recorder[name][0, ::2], full[name][0, ::2])
    assert recorder["affinity"][0, 1].isnan().all()
    torch.testing.assert_close(recorder["affinity"][0, 0, 2], full["affinity"][0, 0, 2])


def test_without_blocks_between_tasks_or_any_kernel_the_rest_is_kept() -> None:
    recorder = Recorder(1)
    blocks = snapshot(0).kernel
    assert blocks is not None
    recorder(snapshot(0, kernel=ExtendedNTK(blocks=blocks.blocks)))
    recorder(snapshot(1, kernel=None))
    assert recorder["condition"].isnan().all()
    assert recorder["affinity"].isnan().all()
    torch.testing.assert_close(recorder["max_eigenvalues"][0], blocks.max_eigenvalues())
    assert recorder["max_eigenvalues"][1].isnan().all()
    assert recorder["losses"].isfinite().all()


def test_affinity_is_averaged_over_a_range_of_steps() -> None:
    recorder = recorded(0, 5, 10)
    torch.testing.assert_close(recorder.mean_affinity(), recorder["affinity"].mean(dim=0))
    torch.testing.assert_close(recorder.mean_affinity(3, 5), recorder["affinity"][1])
    with pytest.raises(ValueError, match=r"no step from 11 to the end .* recorded: \[0, 5, 10\]"):
        recorder.mean_affinity(11)


def test_a_second_training_is_refused() -> None:
    recorder = recorded(0, 5)
    with pytest.raises(ValueError, match="step 5 is recorded already, found step 5"):
        recorder(snapshot(5))
    with pytest.raises(ValueError, match="has tasks"):
        recorder(snapshot(6, tasks=("x", "y", "z")))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"present": (1, 0, 2)}, "present"),
        ({"present": (0, 1, 3)}, "present"),
        ({"losses": torch.ones(2)}, r"losses must have shape \(3,\)"),
        ({"weights": torch.ones(2)}, r"weights must have shape \(3,\)"),
        ({"kernel": ExtendedNTK(blocks=torch.ones(2, 1, 1))}, "the kernel is of 2 tasks, 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_nothing_is_kept(
    parts: dict[str, Any], said: str
) -> None:
    recorder = Recorder(1)
    with pytest.raises(ValueError, match=said):
        recorder(snapshot(0, **parts))
    assert len(recorder) == 0


def test_state_goes_through_a_weights_only_file() -> None:
    recorder = recorded(0, 5)
    file = io.BytesIO()
    torch.save(recorder.state_dict(), file)
    file.seek(0)
    other = Recorder(every=5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(recorder, other)
    other(snapshot(10))
    assert other.steps.tolist() == [0, 5, 10]
    assert len(recorder) == 2
    with pytest.raises(ValueError, match="every 5 steps, this every 6"):
        Recorder(6).load_state_dict(recorder.state_dict())
    with pytest.raises(ValueError, match="not a state of a Recorder"):
        Recorder(5).load_state_dict({"every": 5})


@pytest.mark.parametrize("steps", [(), (0,), (0, 5, 10)])
def test_the_file_holds_it_all(tmp_path: Path, steps: tuple[int, ...]) -> None:
    recorder = recorded(*steps)
    if steps:
        recorder(snapshot(99, kernel=None))
    recorder.save(tmp_path / "r.json")
    assert same(recorder, Recorder.load(tmp_path / "r.json"))
    json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.clear(), "schema None"),
        (lambda found: found.update(schema=2), "schema 2"),
        (lambda found: found.pop("losses"), "damaged"),
        (lambda found: found["losses"].pop(), "losses has shape"),
        (lambda found: found["weights"][0].pop(), "damaged"),
        (lambda found: found.update(step=[5, 0]), "step 0 stands after step 5"),
        (lambda found: found.update(tasks=["a"]), "damaged"),
        (lambda found: found.update(every="5"), "damaged"),
        (lambda found: found.update(affinity="x"), "damaged"),
        (lambda found: found.update(schema="x" * 5000), "schema 'xxx"),
        (lambda found: found.update(source="x" * 5000), "source must be"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "record.json"
    found = recorded(0, 5).to_json()
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(RecordFileError, match=said) as caught:
        Recorder.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000, "a file may hold megabytes"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"null"])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordFileError, match=r"record\.json"):
        Recorder.load(path)
    with pytest.raises(FileNotFoundError):
        Recorder.load(tmp_path / "none.json")


def linear_training(recorder: Recorder | None, method: str, steps: int = 5) -> list[Tensor]:
    torch.manual_seed(0)
    trunk = torch.nn.Linear(3, 4).double()
    heads = [torch.nn.Linear(4, 1).double() for _ in range(3)]
    parameters = [p for module in (trunk, *heads) for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    balancer = Balancer(method, tasks=TASKS, record=recorder)
    for _ in range(steps):
        x = torch.randn(8, 3, dtype=torch.float64)
        z = trunk(x)
        losses = [(head(z) - i).square().mean() for i, head in enumerate(heads)]
        optimizer.zero_grad()
        balancer.backward(losses, features=z)
        optimizer.step()
    return parameters


@pytest.mark.parametrize("method", ["ls", "ntkmtl-sr", "cagrad"])
def test_a_balancer_records_the_exact_kernel_and_trains_as_without(method: str) -> None:
    recorder = Recorder(every=2, source="exact", minibatches=2)
    for a, b in zip(linear_training(recorder, method), linear_training(None, method), strict=True):
        assert torch.equal(a, b)
    assert recorder.steps.tolist() == [0, 2, 4]
    assert recorder.tasks == TASKS
    assert recorder["affinity"].isfinite().all()
    assert recorder["kernel_minibatches"].tolist() == [2, 2, 2]

    # The first step once more, by one gradient per task and mini-batch.
    torch.manual_seed(0)
    trunk = torch.nn.Linear(3, 4).double()
    heads = [torch.nn.Linear(4, 1).double() for _ in range(3)]
    x = torch.randn(8, 3, dtype=torch.float64)
    rows = []
    for i, head in enumerate(heads):
        for part in x.split(4):
            loss = (head(trunk(part)) - i).square().mean()
            rows.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk.parameters())])
            )
    matrix = torch.stack(rows) @ torch.stack(rows).T
    spectrum = torch.linalg.eigvalsh(matrix)
    expected = torch.stack(
        [torch.linalg.eigvalsh(matrix[i : i + 2, i : i + 2])[-1] for i in (0, 2, 4)]
    )
    torch.testing.assert_close(recorder["max_eigenvalues"][0], expected, rtol=1e-9, atol=0)
    assert recorder["condition"][0].item() == pytest.approx(
        condition_number(spectrum.clamp_min(0)), rel=1e-6
    )


@pytest.mark.parametrize("source", ["exact", "representation"])
def test_minibatches_without_features_come_from_losses_of_samples(source: str) -> None:
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(3, 4).double(), [torch.nn.Linear(4, 1).double() for _ in "ab"]
    x = torch.randn(8, 3, dtype=torch.float64)

    def samples(part: torch.Tensor) -> list[torch.Tensor]:
        z = trunk(part).tanh()
        return [(head(z) - i).square()[:, 0] for i, head in enumerate(heads)]

    recorder = Recorder(source=source, minibatches=2)
    Balancer("ls", record=recorder).backward(samples(x))
    assert recorder["kernel_minibatches"].tolist() == [2]
    expected = []
    for i in range(2):
        if source == "exact":
            means = [samples(part)[i].mean() for part in x.split(4)]
            parts = [torch.autograd.grad(mean, trunk.parameters()) for mean in means]
            rows = torch.stack([torch.cat([g.flatten() for g in part]) for part in parts])
            expected.append(torch.linalg.eigvalsh(rows @ rows.T)[-1])
        else:
            z = trunk(x).tanh().detach().requires_grad_()
            loss = (heads[i](z) - i).square().mean()
            rows = torch.autograd.grad(loss, z)[0].view(2, -1) * 2
            expected.append(rows.square().sum(dim=1).amax())  # samples of two parts do not mix
    torch.testing.assert_close(
        recorder["max_eigenvalues"][0], torch.stack(expected), rtol=1e-9, atol=0
    )


def test_a_warning_is_given_once_if_samples_are_unknown() -> None:
    trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in "ab"]
    recorder = Recorder(every=1, minibatches=2)
    balancer = Balancer("ls", record=recorder)

    def one_step() -> None:
        z = trunk(torch.ones(8, 3))
        balancer.backward([head(z).square().mean() for head in heads])

    with pytest.warns(UserWarning, match="2 mini-batches need features"):
        one_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_step()
    assert recorder["kernel_minibatches"].tolist() == [1, 1]


def residuals_of(*scales: float) -> ResidualNTK:
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([1.0, 3.0], dtype=torch.float64)
    named = zip(TASKS, scales, strict=False)
    return residual_ntk({name: scale * w * points for name, scale in named}, [w])


def test_kernels_of_residuals_belong_to_the_last_step_and_go_through_the_file(tmp_path: Path):
    recorder = Recorder(every=2)
    with pytest.raises(ValueError, match="none is recorded yet"):
        recorder.add_residuals(residuals_of(1.0))
    for step in (0, 2):
        recorder(snapshot(step))
    recorder.add_residuals(residuals_of(1.0, 2.0))
    rest = [math.nan] * (len(TASKS) - 2)
    expected = torch.tensor([[math.nan] * len(TASKS), [5.0, 20.0, *rest]], dtype=torch.float64)
    # Rows of rank one: the trace is the only eigenvalue.
    for name in ("residual_traces", "residual_eigenvalues"):
        torch.testing.assert_close(recorder[name], expected, equal_nan=True)
    recorder.save(tmp_path / "record.json")
    kept = Recorder.load(tmp_path / "record.json")
    torch.testing.assert_close(kept["residual_traces"], expected, equal_nan=True)
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="residual elsewhere is not a task"):
        recorder.add_residuals(residual_ntk({"elsewhere": w * torch.ones(1)}, [w]))


def test_a_file_without_residuals_is_read(tmp_path: Path):
    recorder = Recorder()
    for step in (0, 50):
        recorder(snapshot(step))
    recorder.save(tmp_path / "record.json")
    assert "residual" not in (tmp_path / "record.json").read_text("utf-8")
    kept = Recorder.load(tmp_path / "record.json")
    kept.add_residuals(residuals_of(1.0))
    assert kept["residual_traces"][:, 0].isfinite().tolist() == [False, True]
