"""The list of methods, what is said of each, and what ``create`` takes."""

from __future__ import annotations

import importlib
import inspect
import math
import subprocess
import sys

import pytest
import torch

import ntkmtl
from ntkmtl import weighting
from ntkmtl.weighting import SearchRange, accepted_options, create, load, names, spec, specs
from ntkmtl.weighting._method import FAMILIES, method
from ntkmtl.weighting._settings import settings_of

REQUIRED = {
    "baseline": {"losses"},
    "losses": {"losses"},
    "gradients": {"gramian", "jacobian", "kernel"},
    "ntk": {"eigenvalues", "kernel"},
}


def test_every_method_is_listed_once_family_by_family_and_year_by_year() -> None:
    assert len(set(names())) == len(names()) > 40
    assert [entry.name for entry in specs()] == names()
    places = [(FAMILIES.index(s.family), s.year or math.inf) for s in specs()]  # type: ignore[arg-type]
    assert places == sorted(places)
    # The order within a module is that of its decorators.
    assert names()[:2] == ["ls", "stl"]
    last = ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "ntkmtl-auto", "ntkmtl-log", "ntkmtl-x"]
    assert names()[-6:] == last


def test_every_weighting_of_the_package_has_a_name() -> None:
    homes = {entry.home for entry in specs()}
    for entry in specs():
        module = importlib.import_module(entry.home.partition(":")[0])
        for value in vars(module).values():
            public = isinstance(value, type) and value.__name__ in module.__all__
            if public and issubclass(value, weighting.Weighting):
                assert f"{value.__module__}:{value.__name__}" in homes


@pytest.mark.parametrize("name", names())
def test_entries_agree_with_their_classes(name: str) -> None:
    entry = spec(name)
    made = create(name)
    assert type(made) is load(name)
    assert made.requires == entry.requires
    assert entry.requires in REQUIRED[entry.family]
    assert made.name == name
    assert entry.summary
    assert not entry.summary.endswith(".")
    assert entry.paper or name in ("stl", "ls")
    assert entry.year or name in ("stl", "ls") or entry.paper in ("This library", "Common practice")
    balancer = ntkmtl.Balancer(name)
    for option, value in entry.defaults.items():
        assert getattr(balancer, option) == value


@pytest.mark.parametrize("entry", [s for s in specs() if s.space], ids=lambda s: s.name)
def test_searched_settings_begin_at_the_default(entry: weighting.MethodSpec) -> None:
    parameters = inspect.signature(load(entry.name)).parameters
    for each in entry.space:
        assert parameters[each.option].default == each.start
        assert each.low <= each.start <= each.high
        assert each.reason
        create(entry.name, **{each.option: each.low})
        create(entry.name, **{each.option: each.high})


def test_own_published_forms() -> None:
    # Algorithm 1 and 2, and the published codes of the Gramian methods.
    assert spec("ntkmtl").defaults["source"] == "exact"
    assert spec("ntkmtl-sr").defaults["source"] == "representation"
    assert spec("ntkmtl-sr").defaults["pooling"] == "blockwise"
    assert spec("ntkmtl-tk").defaults["pooling"] == "kernel"
    for name in names():
        if spec(name).requires == "gramian":
            assert spec(name).defaults["source"] == "exact"


def test_a_decorator_gives_a_name() -> None:
    @method("upper", family="losses", summary="Above", defaults={"log_losses": True})
    @method("lower", family="losses", summary="Below", paper="Someone: 1999, 2001 (again)")
    class Twice(weighting.LossWeighting):
        balancer_defaults = {"weight_heads": False}  # noqa: RUF012
        search_space = (SearchRange("alpha", 0.0, 1.0, 0.5),)

        def of_losses(self, losses: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
            return losses

    upper, lower = Twice._specs
    assert (upper.name, dict(upper.defaults), upper.year) == ("upper", {"log_losses": True}, None)
    assert (lower.name, dict(lower.defaults), lower.year) == (
        "lower",
        {"weight_heads": False},
        2001,
    )
    assert upper.space == lower.space == Twice.search_space

    class Below(Twice):
        pass

    assert "_specs" not in vars(Below)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ntkmtl_sr", "ntkmtl-sr"), ("NTKMTL", "ntkmtl"), ("nash", "nash-mtl"), ("imtlg", "imtl-g")],
)
def test_unknown_name_suggests_the_closest(typed: str, meant: str) -> None:
    for call in (spec, create, load, ntkmtl.Balancer):
        with pytest.raises(ValueError, match=f"unknown method '{typed}'.*did you mean '{meant}'"):
            call(typed)


def test_unknown_name_lists_all() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'zzz'[.;] Known methods: ") as caught:
        create("zzz")
    for name in names():
        assert name in str(caught.value)


# --------------------------------------------------------------------------- settings


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match=r"did you mean 'exponent'.* It takes exponent, p"):
        create("ntkmtl", exponnt=0.5)
    with pytest.raises(TypeError, match="ls has no option 'c'; it takes none"):
        create("ls", c=1)
    with pytest.raises(TypeError, match="no option 'gama'; did you mean 'gamma'"):
        ntkmtl.Balancer("famo", gama=0.1)
    with pytest.raises(TypeError, match="no option 'normalise'; did you mean 'normalize'"):
        ntkmtl.Balancer("moco", normalise=True)
    with pytest.raises(TypeError, match=r"ls has no option 'zzz'; it takes none, and .* hooked"):
        ntkmtl.Balancer("ls", zzz=1)


@pytest.mark.parametrize("value", [b"12", torch.tensor(0.5), {"a": 1.0, "b": 2.0}])
def test_what_is_no_sequence_of_numbers(value: object) -> None:
    """Bytes are a sequence of integers, and a dict one of its keys."""
    with pytest.raises(TypeError, match=r"preference must be a sequence or None\. Found pref"):
        create("upgrad", preference=value)


WRONG = {"bool": "False", "int": "3", "float": "0.5", "str": 7}


def wrong_settings() -> list[tuple[str, str, object]]:
    """Return a value of the wrong type for each setting of each class."""
    found = []
    for name in {entry.home: entry.name for entry in specs()}.values():
        for option, parameter in inspect.signature(load(name)).parameters.items():
            kind = str(parameter.annotation).partition(" ")[0]
            found.append((name, option, WRONG.get(kind, "12")))
            if kind in ("int", "float"):
                found.append((name, option, True))
    return found


@pytest.mark.parametrize(("name", "option", "value"), wrong_settings())
def test_settings_of_another_type_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"must be|unknown method '12'") as caught:
        create(name, **{option: value})
    assert repr(value) in str(caught.value)


def test_every_class_has_settings_of_a_known_type() -> None:
    assert len(wrong_settings()) > 50


def test_truth_values_are_no_strings() -> None:
    message = "published must be True or False. Found published='False'"
    for call in (create, ntkmtl.Balancer):
        with pytest.raises(TypeError, match=message):
            call("ntkmtl", published="False")
    for weights in (["1", "2"], {"a": True}):
        with pytest.raises(TypeError, match="weights must be numbers"):
            create("fixed", weights=weights)
    with pytest.raises(TypeError, match="weights must be a sequence or a mapping or None"):
        create("fixed", weights=3)
    with pytest.raises(TypeError, match="alpha must be a number"):
        create("fairgrad", alpha=None)
    assert create("fairgrad", alpha=torch.tensor(1).item()).alpha == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [n for n in names() if accepted_options(n)])
def test_a_weighting_knows_the_settings_that_it_was_created_with(name: str) -> None:
    assert settings_of(create(name)) == {}


def test_settings_are_those_that_were_given() -> None:
    options = {"beta": 0.25, "simplex": "projection"}
    assert settings_of(create("moco", **options)) == options
    assert settings_of(create("rlw", seed=3)) == {"seed": 3}


# --------------------------------------------------------------------------- imports


@pytest.mark.parametrize("name", names())
def test_methods_need_torch_and_torchjd_only(name: str) -> None:
    # What is imported by the class's own module, as its source says.
    module = importlib.import_module(spec(name).home.partition(":")[0])
    foreign = {"numpy", "scipy", "cvxpy", "clarabel", "ecos", "qpsolvers"}
    assert not foreign & set(vars(module))


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.integration
def test_importing_the_package_does_not_import_torch() -> None:
    _run(
        "import sys, ntkmtl; ntkmtl.weighting; dir(ntkmtl); "
        "assert 'torch' not in sys.modules; "
        "assert len(ntkmtl.weighting.names()) > 10 and 'torch' in sys.modules; "
        "assert 'scipy' not in sys.modules and 'cvxpy' not in sys.modules"
    )


@pytest.mark.integration
def test_the_command_line_shows_its_help_without_torch() -> None:
    _run(
        "import sys; from typer.testing import CliRunner; from ntkmtl.bench.cli.app import app; "
        "assert CliRunner().invoke(app, ['compare', '--help']).exit_code == 0; "
        "assert 'torch' not in sys.modules"
    )


def test_module_attributes() -> None:
    assert issubclass(weighting.GramianWeighting, weighting.Weighting)
    assert issubclass(weighting.LossWeighting, weighting.Weighting)
    for module in (ntkmtl, weighting):
        with pytest.raises(AttributeError, match="nothing"):
            _ = module.nothing
