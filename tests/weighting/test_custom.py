"""Methods outside the package: loaded by module or file, or given as an instance."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

import ntkmtl
from ntkmtl import weighting
from ntkmtl.weighting import LossWeighting, SearchRange, create, load, spec
from ntkmtl.weighting._settings import settings_of

SOURCE = '''
"""A module of the user's."""
from ntkmtl.weighting import LossWeighting, SearchRange


class Inverse(LossWeighting):
    """One over the loss, to a power. And more."""

    balancer_defaults = {"minibatches": 2, "log_losses": True}
    search_space = (SearchRange("power", 0.25, 4.0, 1.0, log=True),)

    def __init__(self, power: float = 1.0, shift=0.0):
        self.power = power
        self.shift = shift

    def of_losses(self, losses, tasks):
        return (losses + self.shift) ** -self.power


class Half(LossWeighting):
    pass


class Needy(LossWeighting):
    def __init__(self, alpha):
        self.alpha = alpha

    def of_losses(self, losses, tasks):
        return losses


class Other:
    pass
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module into a folder that Python finds; its name is imported nowhere else."""
    (tmp_path / "inverse_mine.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield "inverse_mine"
    sys.modules.pop("inverse_mine", None)


@pytest.mark.parametrize("by", ["inverse_mine:Inverse", "./inverse_mine.py:Inverse"])
def test_a_class_by_module_and_by_file_is_one_method(module: str, by: str) -> None:
    made = create(by, power=2)
    assert made(losses=torch.tensor([2.0, 0.5])).tolist() == [0.25, 4.0]
    assert made.name == "inverse_mine:Inverse"
    assert repr(made) == "Inverse(power=2, shift=0.0)"
    assert type(made) is load("inverse_mine:Inverse")
    entry = spec(by)
    assert entry.name == entry.home == "inverse_mine:Inverse"
    assert entry.summary == "One over the loss, to a power. And more"
    assert (entry.requires, entry.family, entry.year) == ("losses", "custom", None)
    assert entry.space == (SearchRange("power", 0.25, 4.0, 1.0, log=True),)
    assert dict(entry.defaults) == {"minibatches": 2, "log_losses": True}
    assert settings_of(made) == {"power": 2}


def test_the_balancer_takes_the_class_defaults_by_name_and_by_instance(module: str) -> None:
    kind: Any = load("inverse_mine:Inverse")
    for balancer in (
        ntkmtl.Balancer("./inverse_mine.py:Inverse", power=2.0),
        ntkmtl.Balancer(kind(power=2.0)),
    ):
        assert (balancer.log_losses, balancer.minibatches) == (True, 2)
        assert balancer.weighting.power == 2.0  # type: ignore[attr-defined]
    assert not ntkmtl.Balancer("inverse_mine:Inverse", log_losses=False).log_losses
    with pytest.raises(
        TypeError, match=r"no option 'powr'; did you mean 'power'. It takes power, s"
    ):
        ntkmtl.Balancer("inverse_mine:Inverse", powr=2.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:Inverse", "method file nowhere.py: there is no such file"),
        ("no_such_module:Inverse", "method no_such_module:Inverse: No module named"),
        ("inverse_mine:Invers", r"no class Invers that derives from ntkmtl.weighting.Weighting. "),
        ("inverse_mine:Invers", r"It has Inverse, Half, Needy\."),
        ("inverse_mine:Other", "Other does not derive from ntkmtl.weighting.Weighting"),
        ("inverse_mine:Half", r"Half does not define of_losses\(self, losses: .* See docs/methods"),
        ("inverse_mine:", "a method of your own is named module.path:ClassName or path/file.py"),
        ("inverse_mine.py", "a method of your own is named module.path:ClassName or path/file.py"),
    ],
)
def test_what_cannot_be_loaded(module: str, name: str, message: str) -> None:
    for call in (load, spec, create, ntkmtl.Balancer):
        with pytest.raises(ValueError, match=message) as caught:
            call(name)
        assert "\n" not in str(caught.value)


def test_errors_in_the_module_name_the_line(module: str, tmp_path: Path) -> None:
    (tmp_path / "broken_mine.py").write_text("x = 1\ny = x / 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"ZeroDivisionError in .*broken_mine.py, line 2: div"):
        load("./broken_mine.py:Anything")
    (tmp_path / "torch.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a module named torch is imported already.*Rename"):
        load("./torch.py:Anything")


def test_settings_of_a_class_outside_the_package(module: str) -> None:
    with pytest.raises(TypeError, match=r"inverse_mine:Needy needs a value for alpha: give alpha="):
        create("inverse_mine:Needy")
    with pytest.raises(TypeError, match=r"power must be a number. Found power='2'"):
        create("inverse_mine:Inverse", power="2")
    # Without an annotation the default tells.
    with pytest.raises(TypeError, match=r"shift must be a number. Found shift='2'"):
        create("inverse_mine:Inverse", shift="2")
    assert create("inverse_mine:Needy", alpha="a string")


def test_a_class_with_several_names_is_taken_by_name() -> None:
    assert spec("ntkmtl.weighting._fairgrad:FairGrad").name == "fairgrad"
    with pytest.raises(ValueError, match=r"NTKMTL has several names.*: ntkmtl, ntkmtl-sr"):
        spec("ntkmtl.weighting._ntkmtl:NTKMTL")


class Kept(weighting.LossWeighting):
    """Keeps what it is given."""

    def __init__(self, alpha: float = 1.0, names: tuple[str, ...] = ()) -> None:
        self.alpha = alpha
        self.names = names

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return 1 / (self.alpha + losses)


class Wild(Kept):
    """Asks the Balancer for what is the user's to say."""

    balancer_defaults = MappingProxyType({"every": 2})


class Lost(Kept):
    """Does not keep beta."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__(2 * beta)


def test_defaults_that_a_class_cannot_set() -> None:
    with pytest.raises(TypeError, match="balancer_defaults of Wild cannot set 'every'; they can"):
        ntkmtl.Balancer(Wild())


def test_settings_of_an_instance_are_its_arguments_that_are_not_the_default() -> None:
    assert settings_of(Kept()) == {}
    assert settings_of(Kept(2.0)) == {"alpha": 2.0}
    assert settings_of(Kept(names=("a",))) == {"names": ("a",)}
    with pytest.raises(TypeError, match=r"Lost does not keep .* 'beta'.* self.beta = beta"):
        settings_of(Lost())
    changed = create(f"{__name__}:Lost")
    changed.alpha = 5.0  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"Lost\(alpha=5.0, .*changed after it was made"):
        settings_of(changed)


def test_an_instance_in_a_loop() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    out = ntkmtl.Balancer(Kept()).backward([(p - 1).square() for p in parameter.unbind()])
    assert out.weights.tolist() == [0.5, 0.5]
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [-1.0, -1.0]
    with pytest.raises(TypeError, match=r"when it is made"):
        ntkmtl.Balancer(Kept(), alpha=1.0)
    with pytest.raises(TypeError, match=r"found the class Kept; make one: Kept\(\)"):
        ntkmtl.Balancer(Kept)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"name or a Weighting"):
        ntkmtl.Balancer(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [torch.ones(3), torch.ones(2, 1), [1.0, 1.0], None])
def test_what_are_not_k_weights_is_refused(found: object) -> None:
    class Wrong(LossWeighting):
        def of_losses(self, losses: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
            return found  # type: ignore[return-value]

    layer = torch.nn.Linear(3, 2)
    losses = layer(torch.ones(4, 3)).square().mean(dim=0)
    message = "Wrong must return (one weight for each of the 2 tasks|a tensor of real weights)"
    with pytest.raises((TypeError, ValueError), match=message):
        ntkmtl.Balancer(Wrong()).backward(list(losses))
    assert layer.weight.grad is None


def test_an_error_in_the_init_of_a_class_names_the_line(module: str, tmp_path: Path) -> None:
    (tmp_path / "dear_init.py").write_text(
        "from ntkmtl.weighting import LossWeighting\n"
        "class Dear(LossWeighting):\n"
        "    def __init__(self): raise RuntimeError('no luck')\n"
        "    def of_losses(self, losses, tasks): return losses\n"
    )
    with pytest.raises(ValueError, match=r"RuntimeError in .*dear_init\.py, line 3: no luck"):
        weighting.create(f"{tmp_path}/dear_init.py:Dear")
