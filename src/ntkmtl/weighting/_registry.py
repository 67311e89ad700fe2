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
        requires: What its weights are made of: ``"losses"``, ``"eigenvalues"``, ``"gramian"``,
            ``"kernel"`` (all blocks between all mini-batches) or ``"jacobian"`` (the gradients
            themselves, entry by entry).
        home: ``module:Class``.
        extra: The extra that it needs, empty for none.
        defaults: Options of :class:`ntkmtl.Balancer` that the method's own published form uses.
    """

    name: str
    summary: str
    paper: str
    requires: str
    home: str
    extra: str = ""
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_NTKMTL = "Qin, Wang, Liao, Yan: NTKMTL, NeurIPS 2025"
_EXACT: Mapping[str, Any] = MappingProxyType({"source": "exact", "weight_heads": False})
_EXACT_HEADS: Mapping[str, Any] = MappingProxyType({"source": "exact", "weight_heads": True})
# Two mini-batches of one batch are the two samples; blockwise pooling has no products between them.
_DOUBLE: Mapping[str, Any] = MappingProxyType({**_EXACT, "pooling": "pooled", "minibatches": 2})


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
        "Linear scalarization: the plain sum of the losses",
        "",
        "losses",
        "ntkmtl.weighting._ls:LinearScalarization",
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
        "Fast adaptive optimization: equal rates of loss decrease, from losses alone",
        "Liu et al.: FAMO, NeurIPS 2023",
        "losses",
        "ntkmtl.weighting._famo:FAMO",
    ),
    MethodSpec(
        "stch",
        "Smooth Tchebycheff scalarization: a smooth maximum of normalized log losses",
        "Lin et al.: Smooth Tchebycheff Scalarization, ICML 2024",
        "losses",
        "ntkmtl.weighting._stch:SmoothTchebycheff",
    ),
    MethodSpec(
        "gls",
        "Geometric loss strategy: the geometric mean of the losses",
        "Chennupati et al.: MultiNet++, CVPR Workshops 2019",
        "losses",
        "ntkmtl.weighting._gls:GeometricLoss",
    ),
    MethodSpec(
        "imtl-l",
        "Impartial, loss half: a learned scale per task brings all losses to 1",
        "Liu et al.: Towards Impartial Multi-Task Learning, ICLR 2021",
        "losses",
        "ntkmtl.weighting._imtl_l:IMTLL",
    ),
    MethodSpec(
        "go4align",
        "Group weights guided by risk: tasks alike in their risk share one",
        "Shen et al.: GO4Align, NeurIPS 2024",
        "losses",
        "ntkmtl.weighting._go4align:GO4Align",
    ),
    MethodSpec(
        "fixed",
        "Weights given by the user",
        "Common practice",
        "losses",
        "ntkmtl.weighting._fixed:FixedWeights",
    ),
    MethodSpec(
        "unit",
        "Unitary scalarization: the plain sum, with single-task regularization by the optimizer",
        "Kurin et al.: In Defense of the Unitary Scalarization, NeurIPS 2022",
        "losses",
        "ntkmtl.weighting._unit:UnitaryScalarization",
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
        "imtl",
        "Impartial, both halves: equal projections on gradients of losses of one scale",
        "Liu et al.: Towards Impartial Multi-Task Learning, ICLR 2021",
        "gramian",
        "ntkmtl.weighting._imtl:IMTL",
        defaults=_EXACT_HEADS,
    ),
    MethodSpec(
        "gradnorm",
        "Learned weights bring gradients to norms that follow the training rates",
        "Chen et al.: GradNorm, ICML 2018",
        "gramian",
        "ntkmtl.weighting._gradnorm:GradNorm",
        defaults=_EXACT_HEADS,
    ),
    MethodSpec(
        "upgrad",
        "The mean of gradients that are projected so as to conflict with none",
        "Quinton, Rey: Jacobian Descent for Multi-Objective Optimization, 2024",
        "gramian",
        "ntkmtl.weighting._upgrad:UPGrad",
        defaults=_EXACT,
    ),
    MethodSpec(
        "dualproj",
        "The mean gradient, projected so as to conflict with none",
        "Lopez-Paz, Ranzato: Gradient Episodic Memory for Continual Learning, NeurIPS 2017",
        "gramian",
        "ntkmtl.weighting._dualproj:DualProj",
        defaults=_EXACT,
    ),
    MethodSpec(
        "gradvac",
        "Gradient vaccine: gradients are turned until they agree as they used to",
        "Wang et al.: Gradient Vaccine, ICLR 2021",
        "gramian",
        "ntkmtl.weighting._gradvac:GradVac",
        defaults=_EXACT,
    ),
    MethodSpec(
        "excess-mtl",
        "More weight for tasks of larger excess risk, from accumulated squared gradients",
        "He et al.: Robust Multi-Task Learning with Excess Risks, ICML 2024",
        "jacobian",
        "ntkmtl.weighting._excess_mtl:ExcessMTL",
        defaults=_EXACT,
    ),
    MethodSpec(
        "pcd",
        "Priority-constrained: the first task's gradient, with headway for all others",
        "Varam, AlHajri: Not All Objectives Are Born Equal, TMLR 2026",
        "gramian",
        "ntkmtl.weighting._pcd:PCD",
        defaults=_EXACT,
    ),
    MethodSpec(
        "config",
        "Conflict-free: the direction of equal cosine with every gradient",
        "Liu, Chu, Thuerey: ConFIG, ICLR 2025",
        "gramian",
        "ntkmtl.weighting._config:ConFIG",
        defaults=_EXACT,
    ),
    MethodSpec(
        "cr-mogm",
        "Another method's weights, averaged over the steps",
        "Zhou et al.: Stochastic Multi-Objective Gradient Manipulation, NeurIPS 2022",
        "gramian",
        "ntkmtl.weighting._cr_mogm:CRMOGM",
        defaults=_EXACT,
    ),
    MethodSpec(
        "pivrg",
        "Performance-informed: a fair allocation in which worse tasks count more",
        "Qin, Wang, Yan: Revisiting Fairness in Multitask Learning, CVPR 2025",
        "gramian",
        "ntkmtl.weighting._pivrg:PIVRG",
        defaults=_EXACT,
    ),
    MethodSpec(
        "consmtl",
        "Consistent: fair gradients, and heads that turn theirs toward the joint one",
        "Qin, Wang, Yan: Towards Consistent Multi-Task Learning, CVPR 2025",
        "gramian",
        "ntkmtl.weighting._consmtl:ConsMTL",
        defaults=_EXACT,
    ),
    MethodSpec(
        "moco",
        "Gradient correction: the shortest convex combination of tracked gradients",
        "Fernando et al.: Mitigating Gradient Bias in Multi-objective Learning, ICLR 2023",
        "jacobian",
        "ntkmtl.weighting._moco:MoCo",
        defaults=_EXACT,
    ),
    MethodSpec(
        "modo",
        "Double sampling: weights that follow products of gradients of independent samples",
        "Chen et al.: Three-Way Trade-Off in Multi-Objective Learning, JMLR 2024",
        "kernel",
        "ntkmtl.weighting._modo:MoDo",
        defaults=_DOUBLE,
    ),
    MethodSpec(
        "sdmgrad",
        "Direction-oriented: the shortest combination near the mean, by independent samples",
        "Xiao, Ban, Ji: Direction-oriented Multi-objective Learning, NeurIPS 2023",
        "kernel",
        "ntkmtl.weighting._sdmgrad:SDMGrad",
        defaults=_DOUBLE,
    ),
    MethodSpec(
        "db-mtl",
        "Dual balancing: averaged gradients of the log losses, all as long as the longest",
        "Lin et al.: Dual-Balancing for Multi-Task Learning, Neural Networks 2025",
        "jacobian",
        "ntkmtl.weighting._db_mtl:DBMTL",
        defaults=MappingProxyType({**_EXACT, "log_losses": True}),
    ),
    MethodSpec(
        "ldc-mtl",
        "Loss discrepancy control: learned weights, a penalty on differences between neighbors",
        "Xiao, Dong, Zou, Ji: LDC-MTL, arXiv 2502.08585, 2025",
        "losses",
        "ntkmtl.weighting._ldc_mtl:LDCMTL",
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
        defaults=_sr("blockwise"),
    ),
    MethodSpec(
        "ntkmtl-tk",
        "Equal largest NTK eigenvalues, representation joined with the last layer's own kernel",
        "This library",
        "eigenvalues",
        "ntkmtl.weighting._ntkmtl:NTKMTL",
        defaults=_sr("kernel"),
    ),
    MethodSpec(
        "ntkmtl-auto",
        "Equal largest NTK eigenvalues of any graph of losses, measured rarely and averaged",
        "This library",
        "eigenvalues",
        "ntkmtl.weighting._ntkmtl:NTKMTL",
        defaults=MappingProxyType({"source": "auto", "weight_heads": True}),
    ),
    MethodSpec(
        "ntkmtl-x",
        "Fairer by the largest NTK eigenvalues, exponent 2/3; or other statistics, cross terms",
        "This library",
        "kernel",
        "ntkmtl.weighting._ntkmtl_x:NTKMTLX",
        defaults=MappingProxyType({**_EXACT, "minibatches": 4}),
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
        >>> spec("ntkmtl-sr").requires
        'eigenvalues'
    """
    if name not in _BY_NAME:
        close = difflib.get_close_matches(str(name).lower(), _BY_NAME, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"unknown method {name!r}{hint} Known methods: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
