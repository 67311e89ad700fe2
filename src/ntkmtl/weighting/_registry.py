"""The one list of methods: command line, docs, tables and contract tests are driven by it.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["MethodSpec", "names", "spec", "specs"]


@dataclass(frozen=True)
class MethodSpec:
    """What is known of a method without loading it.

    Attributes:
        name: Its registered name.
        summary: One line.
        paper: Authors, title, venue.
        reads: What its weights are made of: ``"losses"``, ``"eigenvalues"``, ``"gramian"`` or
            ``"jacobian"`` (the gradients themselves, entry by entry).
        home: ``module:Class``.
        extra: The extra that it needs, empty for none.
        defaults: Options of :class:`ntkmtl.Balancer` that the method's own published form uses.
    """

    name: str
    summary: str
    paper: str
    reads: str
    home: str
    extra: str = ""
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_NTKMTL = "Qin, Wang, Liao, Yan: NTKMTL, NeurIPS 2025"
_EXACT: Mapping[str, Any] = MappingProxyType({"source": "exact", "weight_heads": False})
_EXACT_HEADS: Mapping[str, Any] = MappingProxyType({"source": "exact", "weight_heads": True})


def _sr(pooling: str) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "source": "representation",
            "pooling": pooling,
            "minibatches": 4,
            "weight_heads": True,
        }
    )


_SPECS = (
    MethodSpec(
        "stl",
        "Single-task learning: one network per task, the baseline of Delta-m",
        "",
        "losses",
        "ntkmtl.weighting._ls:SingleTask",
    ),
    MethodSpec(
        "ls",
        "Linear scalarisation: the plain sum of the losses",
        "",
        "losses",
        "ntkmtl.weighting._ls:LinearScalarisation",
    ),
    MethodSpec(
        "si",
        "Scale-invariant: the sum of the logarithms of the losses",
        "Navon et al.: Multi-Task Learning as a Bargaining Game, ICML 2022 (as a baseline)",
        "losses",
        "ntkmtl.weighting._si:ScaleInvariant",
    ),
    MethodSpec(
        "rlw",
        "Random loss weighting: a softmax of normal random numbers",
        "Lin et al.: Reasonable Effectiveness of Random Weighting, TMLR 2022",
        "losses",
        "ntkmtl.weighting._rlw:RandomLossWeighting",
    ),
    MethodSpec(
        "dwa",
        "Dynamic weight average: by the ratio of the last two epochs' losses",
        "Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention, CVPR 2019",
        "losses",
        "ntkmtl.weighting._dwa:DynamicWeightAverage",
    ),
    MethodSpec(
        "uw",
        "Uncertainty weighting: a learned log-variance per task",
        "Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty, CVPR 2018",
        "losses",
        "ntkmtl.weighting._uw:UncertaintyWeighting",
    ),
    MethodSpec(
        "famo",
        "Fast adaptive optimisation: equal rates of loss decrease, from losses alone",
        "Liu et al.: FAMO, NeurIPS 2023",
        "losses",
        "ntkmtl.weighting._famo:FAMO",
    ),
    MethodSpec(
        "stch",
        "Smooth Tchebycheff scalarisation: a smooth maximum of normalised log losses",
        "Lin et al.: Smooth Tchebycheff Scalarization, ICML 2024",
        "losses",
        "ntkmtl.weighting._stch:SmoothTchebycheff",
    ),
    MethodSpec(
        "mgda",
        "Multiple gradient descent: the shortest convex combination of gradients",
        "Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018",
        "gramian",
        "ntkmtl.weighting._mgda:MGDA",
        defaults=_EXACT,
    ),
    MethodSpec(
        "pcgrad",
        "Gradient surgery: conflicting components are projected away",
        "Yu et al.: Gradient Surgery for Multi-Task Learning, NeurIPS 2020",
        "gramian",
        "ntkmtl.weighting._pcgrad:PCGrad",
        defaults=_EXACT,
    ),
    MethodSpec(
        "graddrop",
        "Gradient sign dropout: one sign is kept per entry, at random",
        "Chen et al.: Just Pick a Sign, NeurIPS 2020",
        "jacobian",
        "ntkmtl.weighting._graddrop:GradDrop",
        defaults=_EXACT,
    ),
    MethodSpec(
        "cagrad",
        "Conflict-averse: the best worst-task improvement near the mean gradient",
        "Liu et al.: Conflict-Averse Gradient Descent, NeurIPS 2021",
        "gramian",
        "ntkmtl.weighting._cagrad:CAGrad",
        extra="solvers",
        defaults=_EXACT,
    ),
    MethodSpec(
        "imtl-g",
        "Impartial, gradient half: equal projections on every task's gradient",
        "Liu et al.: Towards Impartial Multi-Task Learning, ICLR 2021",
        "gramian",
        "ntkmtl.weighting._imtl_g:IMTLG",
        defaults=_EXACT_HEADS,
    ),
    MethodSpec(
        "nash-mtl",
        "Nash bargaining between the tasks",
        "Navon et al.: Multi-Task Learning as a Bargaining Game, ICML 2022",
        "gramian",
        "ntkmtl.weighting._nash_mtl:NashMTL",
        defaults=_EXACT_HEADS,
    ),
    MethodSpec(
        "aligned-mtl",
        "Independent component alignment: all singular values made equal",
        "Senushkin et al.: Independent Component Alignment, CVPR 2023",
        "gramian",
        "ntkmtl.weighting._aligned_mtl:AlignedMTL",
        defaults=_EXACT,
    ),
    MethodSpec(
        "fairgrad",
        "Alpha-fair allocation of the loss decrease",
        "Ban, Ji: Fair Resource Allocation in Multi-Task Learning, ICML 2024",
        "gramian",
        "ntkmtl.weighting._fairgrad:FairGrad",
        defaults=_EXACT,
    ),
    MethodSpec(
        "ntkmtl",
        "Equal largest NTK eigenvalues, kernel of the shared parameters",
        _NTKMTL,
        "eigenvalues",
        "ntkmtl.weighting._ntkmtl:NTKMTL",
        defaults=_EXACT,
    ),
    MethodSpec(
        "ntkmtl-sr",
        "Equal largest NTK eigenvalues, kernel of the shared representation",
        _NTKMTL,
        "eigenvalues",
        "ntkmtl.weighting._ntkmtl:NTKMTL",
        defaults=_sr("pooled"),
    ),
    MethodSpec(
        "ntkmtl-tk",
        "Equal largest NTK eigenvalues, representation joined with the last layer's own kernel",
        "This library",
        "eigenvalues",
        "ntkmtl.weighting._ntkmtl:NTKMTL",
        defaults=_sr("kernel"),
    ),
)
_BY_NAME = {entry.name: entry for entry in _SPECS}


def names() -> list[str]:
    """Return the names of all methods, in the order of the tables.

    Example:
        >>> names()[:3]
        ['stl', 'ls', 'si']
    """
    return list(_BY_NAME)


def specs() -> list[MethodSpec]:
    """Return what is known of every method, in the order of the tables."""
    return list(_SPECS)


def spec(name: str) -> MethodSpec:
    """Return what is known of one method.

    Raises:
        ValueError: There is no method of that name.

    Example:
        >>> spec("ntkmtl-sr").reads
        'eigenvalues'
    """
    if name not in _BY_NAME:
        close = difflib.get_close_matches(str(name).lower(), _BY_NAME, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"unknown method {name!r}{hint} Known methods: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
