"""Analysis of multi-task problems by their extended NTK.

Names are loaded on first use, so that importing the package is fast.

Example:
    >>> import torch
    >>> from ntkmtl import analysis
    >>> kernel = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> analysis.critical_learning_rate(kernel)
    1.0
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkmtl.analysis._record import (
        Recorder,
        RecordFileError,
        Snapshot,
    )
    from ntkmtl.analysis.conditioning import (
        Conditioning,
        WeightingEffect,
        component_steps,
        task_steps,
        weighting_effect,
    )
    from ntkmtl.analysis.dynamics import (
        Components,
        components,
        critical_learning_rate,
        predict_descent,
        predict_flow,
        task_losses,
    )
    from ntkmtl.analysis.grouping import (
        Grouping,
        group_tasks,
    )
    from ntkmtl.analysis.kernels import (
        condition_number,
        convergence_steps,
        effective_rank,
        extended_spectrum,
        imbalance,
        numerical_rank,
        participation_ratio,
        task_spectra,
    )
    from ntkmtl.analysis.residuals import (
        ResidualNTK,
        residual_ntk,
    )
    from ntkmtl.analysis.simulation import (
        Simulation,
        WideMLP,
        prediction_error,
        simulate,
    )
    from ntkmtl.analysis.spectrum import (
        Estimate,
        SpectralDensity,
        SymmetricOperator,
        estimate_trace,
        lanczos,
        linear_operator,
        spectral_density,
        task_eigenvalues,
        top_eigenvalues,
    )

__all__ = [
    "Components",
    "Conditioning",
    "Estimate",
    "Grouping",
    "RecordFileError",
    "Recorder",
    "ResidualNTK",
    "Simulation",
    "Snapshot",
    "SpectralDensity",
    "SymmetricOperator",
    "WeightingEffect",
    "WideMLP",
    "component_steps",
    "components",
    "condition_number",
    "convergence_steps",
    "critical_learning_rate",
    "effective_rank",
    "estimate_trace",
    "extended_spectrum",
    "group_tasks",
    "imbalance",
    "lanczos",
    "linear_operator",
    "numerical_rank",
    "participation_ratio",
    "predict_descent",
    "predict_flow",
    "prediction_error",
    "residual_ntk",
    "simulate",
    "spectral_density",
    "task_eigenvalues",
    "task_losses",
    "task_spectra",
    "task_steps",
    "top_eigenvalues",
    "weighting_effect",
]

_HOMES = {
    "ntkmtl.analysis._record": (
        "RecordFileError",
        "Recorder",
        "Snapshot",
    ),
    "ntkmtl.analysis.kernels": (
        "condition_number",
        "convergence_steps",
        "effective_rank",
        "extended_spectrum",
        "imbalance",
        "numerical_rank",
        "participation_ratio",
        "task_spectra",
    ),
    "ntkmtl.analysis.grouping": (
        "Grouping",
        "group_tasks",
    ),
    "ntkmtl.analysis.conditioning": (
        "Conditioning",
        "WeightingEffect",
        "component_steps",
        "task_steps",
        "weighting_effect",
    ),
    "ntkmtl.analysis.dynamics": (
        "Components",
        "components",
        "critical_learning_rate",
        "predict_descent",
        "predict_flow",
        "task_losses",
    ),
    "ntkmtl.analysis.simulation": (
        "Simulation",
        "WideMLP",
        "prediction_error",
        "simulate",
    ),
    "ntkmtl.analysis.residuals": (
        "ResidualNTK",
        "residual_ntk",
    ),
    "ntkmtl.analysis.spectrum": (
        "Estimate",
        "SpectralDensity",
        "SymmetricOperator",
        "estimate_trace",
        "lanczos",
        "linear_operator",
        "spectral_density",
        "task_eigenvalues",
        "top_eigenvalues",
    ),
}
"""Module -> the public names it holds."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ntkmtl.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
