"""Physics-informed networks: one file per equation, and what they share.

Each equation's conditions (residual, boundary, initial values) are the tasks of one network. The
solutions that errors are measured against are analytic, or computed by SciPy when the problem is
created.
"""

from __future__ import annotations

from ntkmtl.bench.problems.pinn._problem import PINN, Equation
from ntkmtl.bench.problems.pinn.allen_cahn import AllenCahn
from ntkmtl.bench.problems.pinn.burgers import Burgers
from ntkmtl.bench.problems.pinn.helmholtz import Helmholtz
from ntkmtl.bench.problems.pinn.navier_stokes import NavierStokes
from ntkmtl.bench.problems.pinn.wave import Wave

__all__ = ["PINN", "AllenCahn", "Burgers", "Equation", "Helmholtz", "NavierStokes", "Wave"]
