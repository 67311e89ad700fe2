"""Energy, forces and stress with MACE: ``python examples/fields/mace_energy_forces.py``.

Strained and rattled copper, labeled by ASE's EMT; every second cell has no stress label. MACE's own
training script weights and sums the losses in one function, so this is a loop of its own. Needs
``pip install mace-torch``.
"""

from __future__ import annotations

# ruff: noqa: I001
import ase.build
import numpy as np
import torch
from ase.calculators.emt import EMT
from mace import data, modules, tools  # first, as it sets an environment variable for e3nn
from mace.tools import torch_geometric
from e3nn import o3

from ntkmtl import Balancer

CUTOFF = 4.0


def samples(count: int) -> list:
    """Return cells of four atoms as MACE takes them."""
    generator = np.random.default_rng(0)
    table = tools.AtomicNumberTable([29])
    found = []
    for number in range(count):
        atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
        strain = np.eye(3) + 0.03 * generator.normal(size=(3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += 0.1 * generator.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        config = data.Configuration(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.array(atoms.cell),
            pbc=(True, True, True),
            properties={
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(voigt=False),
            },
            property_weights={"energy": 1.0, "forces": 1.0, "stress": float(number % 2 == 0)},
        )
        found.append(data.AtomicData.from_config(config, z_table=table, cutoff=CUTOFF))
    return found


def network() -> torch.nn.Module:
    """Return a small MACE."""
    interaction = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.MACE(
        r_max=CUTOFF,
        num_bessel=6,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=2,
        num_elements=1,
        hidden_irreps=o3.Irreps("8x0e + 8x1o"),
        MLP_irreps=o3.Irreps("8x0e"),
        atomic_energies=np.array([0.0]),
        avg_num_neighbors=18.0,
        atomic_numbers=[29],
        correlation=2,
        gate=torch.nn.functional.silu,
    )


def main(epochs: int = 20) -> dict[str, float]:
    """Train; return the last losses."""
    tools.set_seeds(0)
    torch.set_default_dtype(torch.float64)
    loader = torch_geometric.dataloader.DataLoader(samples(32), batch_size=8, shuffle=True)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # Priorities take the place of MACE's energy_weight and forces_weight.
    balancer = Balancer(tasks=["energy", "forces", "stress"], priorities={"forces": 3})
    for _ in range(epochs):
        for batch in loader:
            out = model(batch.to_dict(), training=True, compute_force=True, compute_stress=True)
            atoms = batch.ptr[1:] - batch.ptr[:-1]
            stress = (out["stress"] - batch.stress).square().mean(dim=(1, 2))
            losses = {
                "energy": ((out["energy"] - batch.energy) / atoms).square().mean(),
                "forces": (out["forces"] - batch.forces).square().mean(),
                "stress": (stress, batch.stress_weight > 0),  # per cell, and which have a label
            }
            optimizer.zero_grad()
            result = balancer.backward(losses)
            optimizer.step()
    print("weights:", {n: f"{w:.3g}" for n, w in zip(losses, result.weights.tolist(), strict=True)})
    losses["stress"] = stress[batch.stress_weight > 0].mean()
    return {name: float(loss.detach()) for name, loss in losses.items()}


if __name__ == "__main__":
    for name, loss in main().items():
        print(f"{name}: {loss:.3g}")
