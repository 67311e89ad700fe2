"""The studies of a search: Optuna's storage, its exports, and what can go wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_problem import Toy

from ntkmtl.bench.report import build_table
from ntkmtl.bench.runs import RunFileError
from ntkmtl.bench.search import Parameter, Search, read_tuning, tune
from ntkmtl.bench.search.study import OptunaStudy
from ntkmtl.bench.training import Comparison, Run, RunSpec, SweepError, load_run, train_spec
from ntkmtl.errors import NonFiniteError

NAN = NonFiniteError("a", 3, "loss", math.nan)


def ask(out: Path, trials: int = 3, **changes: Any) -> Search:
    values: dict[str, Any] = {
        "problem": "toy_problem:Toy",
        "methods": ["fixed"],
        "seeds": [0],
        "out": out,
        "epochs": 1,
    }
    return Search(Comparison(**{**values, **changes}), trials)


def study_of(out: Path, method: str = "fixed") -> Path:
    return out / "toy" / method / "tuning"


def trials(out: Path) -> list[dict[str, Any]]:
    found = sorted(study_of(out).glob("trial-*/trial.json"))
    return [json.loads(path.read_text()) for path in found]


def best(out: Path) -> dict[str, Any]:
    return json.loads((study_of(out) / "best.json").read_text())


def results(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}


def diverging(numbers: set[int], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(problem: Toy, spec: RunSpec, out_dir: Path, **more: Any) -> Run:
        if out_dir.name.startswith("trial") and int(out_dir.name[-4:]) in numbers:
            raise error
        return train_spec(problem, spec, out_dir, **more)

    monkeypatch.setattr("ntkmtl.bench.training.trainer.train_spec", fail)


# --------------------------------------------------------------------------- fixed weights


def test_the_weights_of_fixed_are_searched_from_equal_ones(tmp_path: Path) -> None:
    assert tune(ask(tmp_path, methods=["fixed", "ls"])).failures == ()
    found = trials(tmp_path)
    assert found[0]["method_options"] == {"weights": [1.0, 1.0, 1.0]}
    for trial in found:
        weights = [trial["parameters"][f"weights.{task}"] for task in "abc"]
        assert weights == trial["method_options"]["weights"]
        assert all(0.1 <= weight <= 10.0 for weight in weights)
    # Equal weights are plain training.
    equal, plain = (
        load_run(study_of(tmp_path, method) / "trial-0000") for method in ("fixed", "ls")
    )
    assert equal.result.test == plain.result.test
    run = load_run(tmp_path / "toy/fixed/seed-0")
    assert run.config.method_options == best(tmp_path)["method_options"]
    tuning = build_table(tmp_path).row("fixed").tuning
    assert tuning == read_tuning(tmp_path / "toy/fixed")


# --------------------------------------------------------------------------- the storage


def test_exports_are_written_again_from_the_storage(tmp_path: Path) -> None:
    tune(ask(tmp_path))
    expected, chosen, before = trials(tmp_path), best(tmp_path), results(tmp_path)
    # A process may be killed between the storage and an export.
    (study_of(tmp_path) / "trial-0002/trial.json").unlink()
    (study_of(tmp_path) / "best.json").unlink()
    assert tune(ask(tmp_path)).trained == 0
    assert trials(tmp_path) == expected
    assert {**best(tmp_path), "finished": ""} == {**chosen, "finished": ""}
    assert results(tmp_path) == before


def test_a_storage_that_is_lost_is_filled_from_the_runs(tmp_path: Path) -> None:
    tune(ask(tmp_path))
    expected, before = trials(tmp_path), results(tmp_path)
    (study_of(tmp_path) / "optuna.log").unlink()
    tune(ask(tmp_path))
    assert trials(tmp_path) == expected
    assert results(tmp_path) == before, "nothing was trained again"


def test_optuna_s_own_tools_read_the_storage(tmp_path: Path) -> None:
    import optuna

    tune(ask(tmp_path))
    backend = optuna.storages.journal.JournalFileBackend(str(study_of(tmp_path) / "optuna.log"))
    study = optuna.load_study(study_name="fixed", storage=optuna.storages.JournalStorage(backend))
    assert study.best_trial.number == best(tmp_path)["number"]
    assert study.best_params == best(tmp_path)["parameters"]


def test_what_is_tried_depends_on_the_seed_the_number_and_the_trials_before(
    tmp_path: Path,
) -> None:
    def asked(folder: str, seed: int, number: int) -> dict[str, float]:
        request = {"method": "fixed", "seed": seed}
        study = OptunaStudy(tmp_path / folder, request, (Parameter("x", 0.1, 10.0, start=1.0),))
        study.begin()
        return study.ask(number)

    assert asked("a", 0, 0) == {"x": 1.0}
    draws = [asked("a", 0, 1)["x"], asked("a", 1, 1)["x"], asked("a", 0, 2)["x"]]
    assert len(set(draws)) == 3
    assert asked("b", 0, 1)["x"] == draws[0]
    assert all(0.1 <= value <= 10.0 and float(f"{value:.4g}") == value for value in draws)


def test_better_settings_do_not_replace_runs_unasked(tmp_path: Path) -> None:
    tune(ask(tmp_path, 1))
    before = load_run(tmp_path / "toy/fixed/seed-0").result
    with pytest.raises(SweepError, match=r"method_options\.weights.*--overwrite"):
        tune(ask(tmp_path, 5))
    assert best(tmp_path)["number"] != 0
    assert load_run(tmp_path / "toy/fixed/seed-0").result == before
    assert "was tuned, and not all" in " ".join(build_table(tmp_path).warnings)
    assert tune(ask(tmp_path, 5), overwrite=True).failures == ()
    assert build_table(tmp_path).row("fixed").tuning is not None


# --------------------------------------------------------------------------- what goes wrong


def test_trials_that_diverge_count_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging({0, 2}, monkeypatch, NAN)
    assert tune(ask(tmp_path, 4)).failures == ()
    states = [(trial["state"], trial["value"] is None) for trial in trials(tmp_path)]
    assert states == [("diverged", True), ("complete", False)] * 2
    assert "loss of task a is nan" in trials(tmp_path)[0]["error"]
    found = best(tmp_path)
    assert (found["trials"], found["diverged"], found["start_value"]) == (4, 2, None)
    assert found["number"] in (1, 3)
    (note,) = [note for note in build_table(tmp_path).notes if "tuned:" in note]
    assert "of which 2 diverged" in note
    assert "that the search began with diverged" in note


def test_if_all_diverge_there_is_nothing_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging({0, 1}, monkeypatch, FloatingPointError("metric a is inf"))
    for _ in range(2):
        with pytest.raises(SweepError, match="all 2 trials of fixed diverged"):
            tune(ask(tmp_path, 2))
    assert not (tmp_path / "toy/fixed/seed-0").exists()


def test_without_a_validation_split_nothing_is_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoValidation(Toy):
        def size(self, split: Any) -> int:
            return 0 if split == "val" else super().size(split)

    monkeypatch.setattr(
        "ntkmtl.bench.search.tuning.find_problem", lambda *names, **more: NoValidation()
    )
    with pytest.raises(SweepError, match="no validation split to judge trials on"):
        tune(ask(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def _changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("study.json", lambda path: path.write_text("{"), "not valid JSON"),
        ("study.json", lambda path: _changed(path, schema=9), "schema 9"),
        ("best.json", lambda path: _changed(path, trials="four"), "'trials' must be an integer"),
        ("optuna.log", lambda path: path.write_text("{\n{}\n{}\n"), "remove it, and the same"),
        ("optuna.log", lambda path: path.write_text('{"op_code": 77}\n{}\n'), "remove it, and"),
    ],
)
def test_damaged_files_of_a_study_are_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None], said: str
) -> None:
    search = ask(tmp_path, 1)
    tune(search)
    path = study_of(tmp_path) / name
    damage(path)
    with pytest.raises(RunFileError, match=said) as caught:
        tune(replace(search, trials=2))
    assert caught.value.path == path
