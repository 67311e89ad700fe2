"""
Energies and forces
===================

A potential is trained on energies and on forces, which are its gradient. The force loss is
differentiated twice and reaches every layer directly, so no tensor carries all of its gradient, and
its ratio to the energy loss usually has to be tuned. ``priorities`` says how much forces matter
once both learn equally fast.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from ntkmtl import Balancer

torch.manual_seed(0)
ATOMS = 4
PAIRS = torch.triu_indices(ATOMS, ATOMS, 1)


def distances(positions):
    """Return the distances of all pairs, shape (B, 6)."""
    return (positions[:, PAIRS[0]] - positions[:, PAIRS[1]]).norm(dim=2)


def truth(positions):
    """Return the energies of a Morse potential in eV, and forces in eV / angstrom."""
    positions = positions.detach().requires_grad_()
    energy = (2.0 * (1 - (-1.5 * (distances(positions) - 1.2)).exp()).square()).sum(1)
    (slope,) = torch.autograd.grad(energy.sum(), positions)
    return energy.detach(), -slope


corners = torch.tensor([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) * 0.85
molecules = corners + 0.12 * torch.randn(512, ATOMS, 3)
energies, forces = truth(molecules)
energies = (energies - energies.mean()) / energies.std()
test = corners + 0.12 * torch.randn(256, ATOMS, 3)
_, test_forces = truth(test)
SCALE = truth(molecules)[0].std()


def predict(model, positions):
    """Return standardized energies and their forces, in the units of the forces."""
    positions = positions.detach().requires_grad_()
    energy = model(distances(positions))[:, 0]
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return energy, -slope * SCALE


def train(balancer, steps=400, factor=1.0):
    """Train with a balancer, or with ``energy + factor * forces`` if there is none."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(6, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        rows = torch.randint(len(molecules), (64,))
        energy, force = predict(model, molecules[rows])
        losses = {
            "energy": (energy - energies[rows]).square().mean(),
            "forces": (force - forces[rows]).square().mean(),
        }
        optimizer.zero_grad()
        if balancer is None:
            (losses["energy"] + factor * losses["forces"]).backward()
        else:
            balancer.backward(losses)
        optimizer.step()
        history.append([loss.item() for loss in losses.values()])
    error = (predict(model, test)[1] - test_forces).abs().mean().item()
    return torch.tensor(history), error


runs = {
    "plain sum": train(None),
    "forces x 0.01": train(None, factor=0.01),
    "Balancer()": train(Balancer()),
    'priorities={"forces": 10}': train(Balancer(priorities={"forces": 10})),
}

# %%
# Both losses over training, smoothed over 20 steps:

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for label, (history, _) in runs.items():
    smooth = history.log().unfold(0, 20, 1).mean(-1).exp()
    for i, axis in enumerate(axes):
        axis.semilogy(smooth[:, i], label=label)
axes[0].set(title="energy (standardized)", xlabel="step")
axes[1].set(title="forces ((eV / Å)²)", xlabel="step")
axes[0].legend(fontsize="small")
figure.tight_layout()
for label, (_, error) in runs.items():
    print(f"{label:26} mean absolute error of test forces {error:.3f} eV/Å")

# %%
# In this run, of one seed, a factor that does not fit costs most, ``Balancer()`` ends a little
# ahead of the plain sum without any factor, and a priority for forces adds nothing.
#
# What the balancer finds: both losses bypass any representation, so a kernel computed at a tensor
# would be meaningless. ``Balancer()`` computes exact kernels every few steps.

model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 1))
energy, force = predict(model, molecules[:16])
losses = {"energy": energy.square().mean(), "forces": force.square().mean()}
Balancer().explain(losses, model=model)
