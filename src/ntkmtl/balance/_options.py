"""The options of a Balancer, and all their checks."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl.balance._last_layer import LastLayer
from ntkmtl.balance._snapshot import StepRecorder
from ntkmtl.graph import read_parameters
from ntkmtl.kernel import Probe, RememberInputs
from ntkmtl.kernel._pooling import POOLINGS, Pooling
from ntkmtl.weighting import accepted_options, create, spec
from ntkmtl.weighting._base import Weighting, require_known_input

__all__ = ["Length", "Options", "Priorities", "Source"]

Source = Literal["representation", "exact", "probe", "auto"]
SOURCES: tuple[Source, ...] = ("representation", "exact", "probe", "auto")
Length = Literal["method", "plain", "unit"] | float
Priorities = Mapping[str, float] | Sequence[float]


@dataclass(frozen=True)
class Options:
    """Settings of a Balancer, checked. See :class:`ntkmtl.Balancer` for what they mean."""

    method: str
    weighting: Weighting
    tasks: tuple[str, ...] | None
    source: Source
    pooling: Pooling
    minibatches: int
    every: int
    ema: float
    weight_heads: bool
    shared: list[Tensor] | None
    hooked: bool | None
    batch_dim: int | None
    process_group: dist.ProcessGroup | None
    preset: Literal["published"] | None
    memory_budget: int
    log_losses: bool
    record: StepRecorder | None
    budget: float
    probe: Probe | None
    last_layer: LastLayer | None
    priorities: Priorities | None
    length: Length

    @property
    def requires(self) -> str:
        """What the method computes weights from. See :class:`ntkmtl.weighting.Weighting`."""
        return self.weighting.requires

    @property
    def published_ntkmtl(self) -> bool:
        """Whether to scale and clip as the published code of NTKMTL does."""
        return self.preset == "published" and self.method == "ntkmtl"

    @property
    def needs_gramian(self) -> bool:
        """Whether kernels need the blocks between tasks."""
        return self.weighting.requires_cross_terms or self.length != "method"


def read_options(
    method: str | Weighting, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> Options:
    """Check what the user passed.

    Args:
        method: A name, ``module:Class``, or a weighting.
        given: The Balancer's options by name.
        settings: Settings of the method.

    Raises:
        ValueError: An option is out of range, or contradicts another.
        TypeError: An option has a wrong type, or the method has no such setting.
    """
    weighting, name = _weighting(method, given, settings)
    defaults = _defaults(weighting, name)
    source, pooling = _source(weighting, name, defaults, given)
    minibatches = given["minibatches"]
    options = Options(
        method=name or type(weighting).__name__,
        weighting=weighting,
        tasks=_tasks(given["tasks"]),
        source=source,
        pooling=pooling,
        minibatches=_minibatches(
            weighting, defaults.get("minibatches", 1) if minibatches is None else minibatches
        ),
        every=_whole("every", given["every"], 1),
        ema=_share("ema", given["ema"]),
        weight_heads=_flag("weight_heads", given["weight_heads"], defaults, True),
        shared=None if given["shared"] is None else read_parameters(given["shared"], "shared"),
        hooked=_boolean("hooked", given["hooked"]),
        batch_dim=None if given["batch_dim"] is None else _whole("batch_dim", given["batch_dim"]),
        process_group=_process_group(given["process_group"]),
        preset=given["preset"],
        memory_budget=_whole("memory_budget", given["memory_budget"], 0),
        log_losses=_flag("log_losses", given["log_losses"], defaults, False),
        record=_recorder(given["record"]),
        budget=_budget(given["budget"]),
        probe=_probe(source, weighting, given),
        last_layer=_last_layer(pooling, given["last_layer"]),
        priorities=_priorities(weighting, name, given["priorities"]),
        length=_length(weighting, name, given["length"]),
    )
    _require_fit(options)
    return options


_DEFAULTS = ("source", "pooling", "minibatches", "weight_heads", "log_losses")
"""Options whose default depends on the method."""


def _defaults(weighting: Weighting, name: str | None) -> dict[str, Any]:
    """Return the method's defaults of Balancer options."""
    if name is not None and ":" not in name:
        return dict(spec(name).defaults)
    found = dict(weighting.balancer_defaults)
    for option in found:
        if option not in _DEFAULTS:
            raise TypeError(
                f"balancer_defaults of {type(weighting).__name__} cannot set {option!r}; they can "
                f"set {', '.join(_DEFAULTS)}"
            )
    return found


def _weighting(
    method: Any, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Weighting, str | None]:
    """Return the weighting, and its registered name or None."""
    preset = given["preset"]
    if preset not in (None, "published"):
        raise ValueError(f"preset must be 'published' or None, found {preset!r}")
    if preset == "published" and (not isinstance(method, str) or method not in _PUBLISHED):
        raise ValueError(
            f"preset='published' is for 'ntkmtl' and 'ntkmtl-sr' by name, found {method!r}"
        )
    if isinstance(method, str):
        settings = dict(settings)
        if preset is not None:
            settings.setdefault("published", True)
        _reject_unknown(method, given, settings)
        made = create(method, **settings)
        return made, getattr(made, "name", None)
    if isinstance(method, type) and issubclass(method, Weighting):
        raise TypeError(
            f"method must be a name or a Weighting, found the class {method.__name__}; make one: "
            f"{method.__name__}()"
        )
    if not isinstance(method, Weighting):
        raise TypeError(
            f"method must be a name or a Weighting, found {type(method)}. Names are listed by "
            "ntkmtl.weighting.names()"
        )
    require_known_input(type(method))
    if settings:
        raise TypeError(
            f"unknown options {sorted(settings)}; settings of a weighting are given when it is made"
        )
    return method, getattr(method, "name", None)


_PUBLISHED = ("ntkmtl", "ntkmtl-sr")


def _reject_unknown(method: str, own: Collection[str], settings: Mapping[str, Any]) -> None:
    """Raise if an option belongs neither to the method nor to the Balancer."""
    accepted = accepted_options(method)
    for option in sorted(set(settings) - set(accepted)):
        close = difflib.get_close_matches(option, [*accepted, *own], n=1, cutoff=0.75)
        raise TypeError(
            f"{method} has no option {option!r}"
            + (f"; did you mean {close[0]!r}? It" if close else "; it")
            + f" takes {', '.join(accepted) or 'none'}, and every method takes {', '.join(own)}"
        )


def _source(
    weighting: Weighting, name: str | None, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[Source, Pooling]:
    method = name or type(weighting).__name__
    requires, pooling = weighting.requires, given["pooling"]
    asked = given["source"]
    asked = defaults.get("source", "exact") if asked is None else asked
    source = cast("Source", _one_of("source", asked, SOURCES))
    if source != "exact" and weighting.tracks_gradients:
        raise ValueError(
            f"{method} follows gradients over steps, which features of different samples do not "
            "allow; set source='exact'"
        )
    if pooling is not None and requires != "losses" and source == "exact":
        raise ValueError(f"pooling={pooling!r} belongs to source='representation'; this is 'exact'")
    if source in ("probe", "auto") and requires == "jacobian":
        raise ValueError(
            f"{method} works on the gradients entry by entry, which {source!r} does not give; "
            "set source='exact' or 'representation'"
        )
    if pooling not in (None, "blockwise") and requires != "losses" and source == "auto":
        raise ValueError(
            f"pooling={pooling!r} belongs to source='representation' or 'probe'; 'auto' reads "
            "exact kernels"
        )
    usual = defaults.get("pooling", "blockwise")
    if source in ("probe", "auto") and usual == "pooled" and requires != "kernel":
        usual = "blockwise"  # Eq. 17's error is not a per-task factor: nothing could correct it
    return source, cast(
        "Pooling", _one_of("pooling", usual if pooling is None else pooling, POOLINGS)
    )


def _probe(source: Source, weighting: Weighting, given: Mapping[str, Any]) -> Probe | None:
    trunk: Any = given["trunk"]
    probe: Probe | None = given["probe"]
    corrected = _boolean("corrected", given["corrected"])
    if isinstance(trunk, Probe):
        probe, trunk = trunk, None
    if probe is not None and not isinstance(probe, Probe):
        raise TypeError(f"probe must be a ntkmtl.Probe, found {type(probe)}")
    if probe is not None and (trunk is not None or corrected is not None):
        raise ValueError("give trunk and corrected to the Probe, not beside it")
    if trunk is not None:
        if not isinstance(trunk, nn.Module | RememberInputs):
            raise TypeError(f"trunk must be a module or a Probe, found {type(trunk)}")
        probe = Probe(trunk, corrected=corrected is not False)
    if probe is not None and source in ("exact", "representation"):
        raise ValueError(f"trunk belongs to source='probe' or 'auto'; this is {source!r}")
    if corrected is not None and probe is None and source != "probe":
        raise ValueError(
            "corrected says what probes of a trunk are for: give trunk, or leave it out"
        )
    if source != "probe":
        return probe
    if probe is None:
        raise ValueError(
            "source='probe' runs the trunk again: give the module that makes the features as "
            "Balancer(..., trunk=model.trunk)"
        )
    if given["pooling"] is not None and not probe.corrected:
        raise ValueError(
            f"pooling={given['pooling']!r} says which kernel of the features probes correct; "
            "corrected=False leaves it out"
        )
    return probe


def _require_fit(options: Options) -> None:
    """Raise if options contradict each other."""
    method, requires = options.method, options.requires
    if requires == "jacobian" and (options.every > 1 or options.ema):
        raise ValueError(f"{method} needs the gradients of each step: no every, no ema")
    if requires == "kernel" and options.ema:
        raise ValueError(f"{method} compares mini-batches of one step: no ema")
    if requires == "losses" and not options.weight_heads:
        raise ValueError(
            f"{method} reads losses only and weighs whole losses, those of heads too: no "
            "weight_heads=False"
        )
    if options.log_losses and options.weighting.takes_logarithms:
        raise ValueError(f"{method} takes logarithms of the losses already: no log_losses")
    if options.log_losses and requires == "kernel" and options.weighting.needs_positive_losses:
        raise ValueError(f"{method} divides gradients by the losses themselves: no log_losses")
    if options.length != "method" and options.published_ntkmtl:
        raise ValueError("preset='published' clips the gradient, which sets its length: no length")


def _minibatches(weighting: Weighting, value: Any) -> int:
    n = _whole("minibatches", value, 1)
    return 1 if weighting.requires == "jacobian" else n  # k gradients are combined, not k n


def _tasks(tasks: Any) -> tuple[str, ...] | None:
    if tasks is None:
        return None
    if isinstance(tasks, str | bool):
        raise TypeError(f"tasks must be a number or a sequence of names, found {tasks!r}")
    if isinstance(tasks, Set):
        raise TypeError(f"tasks must be in order, and a set has none; found {tasks!r}")
    if isinstance(tasks, Iterable):
        names = tuple(tasks)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"names of tasks must be strings, found {list(names)!r}")
        return names
    return tuple(str(i) for i in range(_whole("tasks", tasks, 1)))


def _process_group(group: Any) -> Any:
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup or None, found {type(group)}"
        )
    return group


def _recorder(record: Any) -> Any:
    needed = ("wants", "source", "minibatches", "pooling")
    if record is not None and not (callable(record) and all(hasattr(record, n) for n in needed)):
        raise TypeError(
            f"record must be a ntkmtl.analysis.Recorder or None, found {record!r}; a recorder of "
            f"your own is called with a Snapshot and has {', '.join(needed)}"
        )
    return record


def _last_layer(pooling: Pooling, layer: Any) -> LastLayer | None:
    if layer is None:
        return None
    if pooling != "kernel":
        raise ValueError(f"last_layer belongs to pooling='kernel', found {pooling!r}")
    return LastLayer(layer)


def _priorities(weighting: Weighting, name: str | None, value: Any) -> Priorities | None:
    if value is None:
        return None
    if weighting.requires == "jacobian":
        raise ValueError(
            f"{name or type(weighting).__name__} combines gradients entry by entry, and its "
            "weights are only reported: priorities have nothing to multiply"
        )
    if isinstance(value, str) or not isinstance(value, Mapping | Sequence):
        raise TypeError(
            f"priorities must be a dict of tasks and numbers, or a list of numbers, found {value!r}"
        )
    numbers = value.values() if isinstance(value, Mapping) else value
    for number in numbers:
        if not 0.0 < _number("priorities", number) < math.inf:
            raise ValueError(f"priorities must be positive and finite, found {number}")
    return dict(value) if isinstance(value, Mapping) else list(value)


def _length(weighting: Weighting, name: str | None, value: Any) -> Length:
    if value in ("method", "plain", "unit"):
        if value != "method" and weighting.requires in ("losses", "jacobian"):
            what = (
                "reads losses only"
                if weighting.requires == "losses"
                else "weighs no whole gradient"
            )
            raise ValueError(
                f"length={value!r} compares lengths of gradients, and "
                f"{name or type(weighting).__name__} {what}; leave length out"
            )
        return cast("Length", value)
    if isinstance(value, str):
        raise ValueError(
            f"length must be 'method', 'plain', 'unit' or a positive number, found {value!r}"
        )
    number = _number("length", value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"length must be positive and finite, found {value}")
    _length(weighting, name, "unit")
    return number


def _budget(value: Any) -> float:
    number = _number("budget", value)
    if not 1.0 < number < math.inf:
        raise ValueError(
            f"budget must be above 1, the cost of plain training, and finite; found {value}"
        )
    return number


def _share(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be in [0, 1), found {value}")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError(f"{name} must be a number, found {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, found {value!r}") from error


def _whole(name: str, value: Any, least: int | None = None) -> int:
    at_least = "" if least is None else f" of at least {least}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        raise ValueError(f"{name} must be a whole number{at_least}, found {value!r}")
    return number


def _boolean(name: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} must be True, False or None, found {value!r}")
    return value


def _flag(name: str, value: Any, defaults: Mapping[str, Any], usual: bool) -> bool:
    given = _boolean(name, value)
    return bool(defaults.get(name, usual)) if given is None else given


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}")
    return str(value)
