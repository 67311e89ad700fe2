"""The one list of methods."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

import ntkmtl
from ntkmtl import weighting
from ntkmtl.errors import MissingExtraError
from ntkmtl.weighting import MethodSpec, _registry, create, names, spec, specs

EXPECTED = {
    "losses": {"stl", "ls", "si", "rlw", "dwa", "uw", "famo", "stch", "ldc-mtl"}
    | {"gls", "imtl-l", "go4align", "fixed", "unit"},
    "gramian": {"mgda", "pcgrad", "cagrad", "imtl-g", "nash-mtl", "aligned-mtl", "fairgrad"}
    | {
        "imtl",
        "gradnorm",
        "upgrad",
        "dualproj",
        "gradvac",
        "pcd",
        "config",
        "cr-mogm",
        "pivrg",
        "consmtl",
    },
    "kernel": {"modo", "sdmgrad", "ntkmtl-x"},
    "jacobian": {"graddrop", "moco", "db-mtl", "excess-mtl"},
    "eigenvalues": {"ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "ntkmtl-auto"},
}


def test_every_method_is_registered_once() -> None:
    assert len(set(names())) == len(names())
    found: dict[str, set[str]] = {}
    for entry in specs():
        found.setdefault(entry.requires, set()).add(entry.name)
    assert found == EXPECTED
    assert [entry.name for entry in specs()] == names()


@pytest.mark.parametrize("name", names())
def test_entries_agree_with_their_classes(name: str) -> None:
    entry = spec(name)
    made = create(name)
    assert made.requires == entry.requires
    assert made.name == name
    assert entry.summary
    assert not entry.summary.endswith(".")
    assert entry.paper or name in ("stl", "ls")
    balancer = ntkmtl.Balancer(name)
    for option, value in entry.defaults.items():
        assert getattr(balancer, option) == value


def test_own_published_forms() -> None:
    # Algorithm 1 and 2, and the published codes of the Gramian methods.
    assert spec("ntkmtl").defaults["source"] == "exact"
    assert spec("ntkmtl-sr").defaults["source"] == "representation"
    assert spec("ntkmtl-sr").defaults["pooling"] == "blockwise"
    assert spec("ntkmtl-tk").defaults["pooling"] == "kernel"
    for name in names():
        if spec(name).requires == "gramian":
            assert spec(name).defaults["source"] == "exact"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ntkmtl_sr", "ntkmtl-sr"), ("NTKMTL", "ntkmtl"), ("nash", "nash-mtl"), ("imtlg", "imtl-g")],
)
def test_unknown_name_suggests_the_closest(typed: str, meant: str) -> None:
    for call in (spec, create, ntkmtl.Balancer):
        with pytest.raises(ValueError, match=f"unknown method '{typed}'.*did you mean '{meant}'"):
            call(typed)


def test_unknown_name_lists_all() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'zzz'[.;] Known methods: ") as caught:
        create("zzz")
    for name in names():
        assert name in str(caught.value)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="ntkmtl has no option 'exponnt'; it takes exponent, pub"):
        create("ntkmtl", exponnt=0.5)
    with pytest.raises(TypeError, match="ls has no option 'c'; it takes none"):
        create("ls", c=1)
    with pytest.raises(TypeError, match="no option 'gama'"):
        ntkmtl.Balancer("famo", gama=0.1)


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = MethodSpec("needy", "", "", "losses", "ntkmtl_not_there.needy:Needy", extra="bench")
    monkeypatch.setitem(_registry._BY_NAME, "needy", entry)
    message = r"needy needs ntkmtl_not_there.*pip install 'ntkmtl\[bench\]'"
    with pytest.raises(MissingExtraError, match=message):
        create("needy")
    with pytest.raises(ImportError, match=message):
        ntkmtl.Balancer("needy")


@pytest.mark.parametrize("name", [n for n in names() if not spec(n).extra])
def test_methods_without_an_extra_need_torch_and_torchjd_only(name: str) -> None:
    # What is imported by the class's own module, as its source says.
    module = importlib.import_module(spec(name).home.partition(":")[0])
    foreign = {"numpy", "scipy", "cvxpy", "clarabel", "ecos", "qpsolvers"}
    assert not foreign & set(vars(module))


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_listing_methods_does_not_import_torch() -> None:
    _run(
        "import sys, ntkmtl.weighting as w; "
        "assert len(w.specs()) == len(w.names()) > 10; "
        "assert w.spec('ntkmtl').summary; "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )


def test_importing_the_package_does_not_import_torch() -> None:
    _run(
        "import sys, ntkmtl; ntkmtl.weighting.names(); dir(ntkmtl); "
        "assert 'torch' not in sys.modules; "
        "ntkmtl.Balancer; assert 'torch' in sys.modules; "
        "assert 'scipy' not in sys.modules and 'cvxpy' not in sys.modules"
    )


def test_module_attributes() -> None:
    assert issubclass(weighting.GramianWeighting, weighting.Weighting)
    assert issubclass(weighting.LossWeighting, weighting.Weighting)
    for module in (ntkmtl, weighting):
        with pytest.raises(AttributeError, match="nothing"):
            _ = module.nothing


class Inverse(weighting.LossWeighting):
    """A weighting of one's own."""

    def of_losses(self, losses: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + losses)


def test_a_weighting_of_ones_own() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    out = ntkmtl.Balancer(Inverse()).backward([(p - 1).square() for p in parameter.unbind()])
    assert out.weights.tolist() == [0.5, 0.5]
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [-1.0, -1.0]
    with pytest.raises(TypeError, match="when it is made"):
        ntkmtl.Balancer(Inverse(), exponent=1.0)
    with pytest.raises(TypeError, match="name or a Weighting"):
        ntkmtl.Balancer(3)
