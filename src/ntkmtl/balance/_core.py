"""Options and state of a Balancer, passed to the functions that run its steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ntkmtl.balance._memory import Memory
from ntkmtl.balance._options import Options
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._probe_correction import ProbeCorrection
from ntkmtl.weighting._base import Weighting

__all__ = ["Core"]


@dataclass
class Core:
    """Options and state of a Balancer.

    Attributes:
        options: The options, checked.
        memory: State that lasts between steps and is saved.
        correction: Factors between probes and the representation's kernel; None without probes.
        held: Weights that a ``hold`` block keeps, by task; None outside such a block.
        reached: Where only gradients show which tasks reach a parameter: as bits, the tasks whose
            gradient was seen to be other than zero, and those whose gradient was looked at.
        order: The shared parameters in the order of the first step, for methods that read
            gradients entry by entry; None if not known.
        owner: What the weighting holds while it belongs to this Balancer.
        owned: The weightings with a state, the method and what it holds.
        prepare: Applied to each kernel before the method reads it.
        half: Whether some parameters are float16; None if not known.
        known: Parameters that were looked at for hooks on their nodes, by id.
        nodes: Whether one of them has such hooks.
        checked: Custom functions that give the same gradient when their backward pass runs twice,
            by whether gradients are not scaled.
    """

    options: Options
    memory: Memory = field(default_factory=Memory)
    correction: ProbeCorrection | None = None
    held: dict[int, float] | None = None
    reached: dict[Tensor, tuple[int, int]] = field(default_factory=dict)
    order: list[Tensor] | None = None
    prepare: Callable[[ExtendedNTK], ExtendedNTK] | None = None
    half: bool | None = None
    known: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    nodes: bool = False
    checked: dict[bool, weakref.WeakSet[type]] = field(default_factory=dict)
    owner: object = field(default_factory=object)
    owned: list[Weighting] = field(default_factory=list)

    def __post_init__(self) -> None:
        weighting = self.options.weighting
        parts = [w for w in (weighting, *vars(weighting).values()) if isinstance(w, Weighting)]
        self.owned = [w for w in parts if type(w)._get_state is not Weighting._get_state]
        for part in self.owned:
            vars(part)["_owner"] = self.owner

    def require_owned(self) -> None:
        """Check that no other Balancer has taken the weighting.

        Raises:
            ValueError: One has, and the weighting has a state.
        """
        for part in self.owned:
            if vars(part).get("_owner") is not self.owner:
                raise ValueError(
                    f"this {type(part).__name__} was given to another Balancer after this one, and "
                    "its state of one network would mix with that of the other: make a weighting "
                    "for each Balancer (or give each a copy.deepcopy of it)"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Parameters belong to the network, not to the Balancer.
        kept = {**vars(self), "reached": {}, "order": None, "known": {}, "nodes": False}
        return {**kept, "held": None, "checked": {}}

    def require_priorities(self, names: Sequence[str]) -> None:
        """Check that priorities match the tasks.

        Raises:
            ValueError: They name other tasks, or are of another number.
        """
        given = self.options.priorities
        if isinstance(given, Mapping) and (unknown := sorted(set(given) - set(names))):
            raise ValueError(f"priorities of unknown tasks {unknown}; the tasks are {list(names)}")
        if given is not None and not isinstance(given, Mapping) and len(given) != len(names):
            raise ValueError(f"found {len(given)} priorities for {len(names)} tasks")

    def set_tasks(self, names: tuple[str, ...]) -> None:
        """Set the names of all tasks, and create what depends on their number.

        Raises:
            ValueError: Names are missing or repeated, or options are for other tasks.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be one or more different names, found {list(names)}")
        probe = self.options.probe
        if probe is not None and probe.corrected:
            self.correction = ProbeCorrection(len(names))
        self.options.weighting.name_tasks(names)
        self.require_priorities(names)
        self.options.weighting.prepare(len(names), torch.device("cpu"))
        self.memory.names = names
