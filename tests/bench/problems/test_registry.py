from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from ntkmtl.bench import problems


def test_listing_problems_does_not_import_torch() -> None:
    code = (
        "import sys; from ntkmtl.bench import problems; problems.names(); problems.specs(); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_table_names_classes_that_agree_with_it() -> None:
    for spec in problems.specs():
        module, _, name = spec.target.partition(":")
        kind = getattr(import_module(module), name)
        if not spec.supervised:
            assert callable(kind.asked)
            assert kind.takes
            with pytest.raises(ValueError, match=f"trained by `ntkmtl compare {spec.name}`"):
                problems.create(spec.name)
            continue
        assert issubclass(kind, problems.Problem)
        assert kind.name == spec.name
        assert kind.summary == spec.summary
        # Tasks that depend on the data are known once there is a problem.
        if hasattr(kind, "tasks"):
            assert {metric.task for metric in kind.metrics} == set(kind.tasks)
        if spec.prepare:
            module, _, name = spec.prepare.partition(":")
            assert callable(getattr(import_module(module), name))


def test_names_and_specs_agree() -> None:
    assert problems.names() == tuple(spec.name for spec in problems.specs())
    assert all("\n" not in spec.summary for spec in problems.specs())


def test_base_names_are_loaded_on_use() -> None:
    from ntkmtl.bench.problems import base

    assert problems.Metric is base.Metric
    assert "Recipe" in dir(problems)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        problems.Nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_unknown_name_says_the_closest_and_all() -> None:
    with pytest.raises(ValueError, match=r"'qm9-mimi'; did you mean 'qm9-mini'\? Known: qm9-mini"):
        problems.create("qm9-mimi")
    with pytest.raises(ValueError, match=r"'xyzzy'\. Known: qm9-mini"):
        problems.create("xyzzy")


def test_recipes_are_known_before_data_are_read() -> None:
    assert problems.known_recipe("qm9").batch_size == 60  # type: ignore[union-attr]
    small = problems.known_recipe("qm9", "small")
    assert small is not None
    assert small.reduced
    assert problems.known_recipe("qm9-mini") is not None
    assert problems.known_recipe("table") is None
    assert problems.known_recipe("qm9", "huge") is None


def test_unknown_option_says_those_known() -> None:
    with pytest.raises(TypeError, match="qm9-mini has no option 'target'; it takes: targets"):
        problems.create("qm9-mini", target="raw")


def test_unknown_value_says_those_known() -> None:
    with pytest.raises(ValueError, match=r"'standardized' or 'raw'\. Found targets='log'"):
        problems.create("qm9-mini", targets="log")


def test_missing_numpy_says_what_to_install() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['numpy'] = None\n"
        "from ntkmtl import errors\nfrom ntkmtl.bench import problems\n"
        "try:\n    problems.create('qm9-mini')\n"
        "except errors.MissingExtraError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert "qm9-mini needs numpy" in result.stdout
    assert "pip install 'ntkmtl[bench]'" in result.stdout


def test_classes_stand_where_the_runs_of_earlier_versions_say() -> None:
    # config.json names a run's class; a network whose class is elsewhere is not used again.
    kinds = [problems.load_target(spec.name) for spec in problems.specs() if spec.supervised]
    assert [f"{kind.__module__}:{kind.__qualname__}" for kind in kinds] == [
        "ntkmtl.bench.problems.qm9_mini._problem:QM9Mini",
        "ntkmtl.bench.problems.qm9._problem:QM9",
        "ntkmtl.bench.problems.celeba._problem:CelebA",
        "ntkmtl.bench.problems.nyuv2._problem:NYUv2",
        "ntkmtl.bench.problems.cityscapes._problem:Cityscapes",
        "ntkmtl.bench.problems.table._problem:Table",
        "ntkmtl.bench.problems.xtb._problem:XTB",
        "ntkmtl.bench.problems.pinn.burgers:Burgers",
        "ntkmtl.bench.problems.pinn.helmholtz:Helmholtz",
        "ntkmtl.bench.problems.pinn.allen_cahn:AllenCahn",
        "ntkmtl.bench.problems.pinn.wave:Wave",
        "ntkmtl.bench.problems.pinn.navier_stokes:NavierStokes",
    ]


def test_a_table_takes_the_fields_of_its_settings_and_a_subclass_its_own() -> None:
    class Prices(problems.load_target("table")):  # type: ignore[misc]
        def __init__(self, file: str) -> None:
            super().__init__(file, "price")

    table = inspect.signature(problems.load_target("table")).parameters
    assert list(table)[:3] == ["csv", "targets", "types"]
    assert list(inspect.signature(Prices).parameters) == ["file"]
    with pytest.raises(TypeError, match="table has no option 'file'; it takes: csv, targets, ty"):
        problems.create("table", file="t.csv")
