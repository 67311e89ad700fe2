"""The extended neural tangent kernel of k tasks, and where it comes from.

:func:`extended_ntk` computes it from losses and either features or parameters and returns an
:class:`ExtendedNTK`. :func:`branch` makes views of a representation for quick differentiation.
:func:`output_ntk` computes the kernel of a network's outputs, :class:`OutputNTKOperator` multiplies
with it.
"""

from __future__ import annotations

from ntkmtl.graph import Branches, branch
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._outputs import MemoryBudgetError, output_ntk
from ntkmtl.kernel._outputs_function import Batches
from ntkmtl.kernel._outputs_kernel import OutputNTK
from ntkmtl.kernel._outputs_operator import OutputNTKOperator
from ntkmtl.kernel._partition import minibatch_sizes
from ntkmtl.kernel._pooling import kernel_from_rows
from ntkmtl.kernel._probe import Probe, RememberInputs
from ntkmtl.kernel._sources import extended_ntk

__all__ = [
    "Batches",
    "Branches",
    "ExtendedNTK",
    "MemoryBudgetError",
    "OutputNTK",
    "OutputNTKOperator",
    "Probe",
    "RememberInputs",
    "branch",
    "extended_ntk",
    "kernel_from_rows",
    "minibatch_sizes",
    "output_ntk",
]
