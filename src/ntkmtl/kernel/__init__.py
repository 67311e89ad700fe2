"""The extended neural tangent kernel (NTK) of k tasks.

:func:`extended_ntk` computes the kernel of losses from features or parameters and returns an
:class:`ExtendedNTK`. :func:`output_ntk` computes the kernel of a network's outputs;
:class:`OutputNTKOperator` multiplies vectors by it without building the matrix. :func:`branch`
returns views of a representation that make differentiation faster.
"""

from __future__ import annotations

from ntkmtl.graph import Branches, branch
from ntkmtl.kernel._chunks import Batches
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._outputs import MemoryBudgetError, output_ntk
from ntkmtl.kernel._outputs_kernel import OutputNTK
from ntkmtl.kernel._outputs_operator import OutputNTKOperator
from ntkmtl.kernel._partition import minibatch_sizes
from ntkmtl.kernel._pooling import kernel_from_rows
from ntkmtl.kernel._probe import Probe
from ntkmtl.kernel._sources import extended_ntk
from ntkmtl.kernel._trunk import RememberInputs

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
