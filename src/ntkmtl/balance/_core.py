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

__all__ = ["Core"]


@dataclass
class Core:
    """Options and state of a Balancer.

    Attributes:
        options: The options, checked.
        memory: State that lasts between steps and is saved.
        correction: Factors between probes and the representation's kernel; None without probes.
        held: Weights that a ``hold`` block keeps, by task; None outside such a block.
        shared: Tasks of the last step in which gradients had to show which parameters are shared,
            and whether each of these is.
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
    shared: tuple[list[int], dict[Tensor, bool]] = field(default_factory=lambda: ([], {}))
    prepare: Callable[[ExtendedNTK], ExtendedNTK] | None = None
    half: bool | None = None
    known: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    nodes: bool = False
    checked: dict[bool, weakref.WeakSet[type]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        # Parameters belong to the network, not to the Balancer.
        return {
            **vars(self),
            "shared": ([], {}),
            "held": None,
            "known": {},
            "nodes": False,
            "checked": {},
        }

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
