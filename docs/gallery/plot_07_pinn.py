"""
A PINN
======

A heat equation whose solution is known: residual, initial values and boundary are three losses with
their own points, and no tensor in common. Balancing does not always help: on this equation, with
one seed and one learning rate, the plain sum ends ahead of ``Balancer()``, as the pictures show.
:ref:`The last example <sphx_glr_docs_examples_plot_12_worth_it.py>` shows how to measure quickly
whether it helps on yours.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from ntkmtl import Balancer

DIFFUSION = 0.1


def exact(t, x):
    """Solve u_t = 0.1 u_xx with u = 0 at x = 0 and 1, and three sines at t = 0."""
    waves = ((1, 1.0), (3, 0.6), (5, 0.3))
    return sum(
        a * torch.sin(k * math.pi * x) * torch.exp(-DIFFUSION * (k * math.pi) ** 2 * t)
        for k, a in waves
    )


def losses_of(model):
    """Return losses of single points."""
    inside = torch.rand(128, 2, requires_grad=True)  # columns t and x
    (du,) = torch.autograd.grad(model(inside).sum(), inside, create_graph=True)
    (ddu,) = torch.autograd.grad(du[:, 1].sum(), inside, create_graph=True)
    start = torch.stack([torch.zeros(64), torch.rand(64)], dim=1)
    edge = torch.stack([torch.rand(32), torch.randint(2, (32,)).float()], dim=1)
    return {
        "equation": (du[:, 0] - DIFFUSION * ddu[:, 1]).square().mean(),
        "start": (model(start)[:, 0] - exact(start[:, 0], start[:, 1])).square().mean(),
        "edge": model(edge)[:, 0].square().mean(),
    }


grid = torch.cartesian_prod(torch.linspace(0, 1, 41), torch.linspace(0, 1, 41))
solution = exact(grid[:, 0], grid[:, 1])


def train(balancer, steps=1000):
    """Train with a balancer, or with the plain sum if there is none."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    errors, weights = [], []
    for step in range(steps):
        losses = losses_of(model)
        optimizer.zero_grad()
        if balancer is None:
            sum(losses.values()).backward()
        else:
            weights.append(balancer.backward(losses).weights)
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                off = model(grid)[:, 0] - solution
            errors.append((off.norm() / solution.norm()).item())
    return model, errors, weights


runs = {
    "plain sum": train(None),
    "Balancer()": train(Balancer()),
}

# %%
# The error against the known solution, and the weights.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for label, (_, errors, _) in runs.items():
    axes[0].semilogy(range(0, 10 * len(errors), 10), errors, label=label)
axes[0].set(xlabel="step", ylabel="relative error of the solution")
axes[0].legend()
axes[1].semilogy(torch.stack(runs["Balancer()"][2]), label=["equation", "start", "edge"])
axes[1].set(xlabel="step", title="weights of Balancer()")
axes[1].legend()
figure.tight_layout()

# %%
# The solutions:

figure, axes = plt.subplots(1, 3, figsize=(9, 3))
pictures = {"exact": solution}
with torch.no_grad():
    pictures |= {label: model(grid)[:, 0] for label, (model, _, _) in runs.items()}
for axis, (label, values) in zip(axes, pictures.items(), strict=True):
    axis.imshow(values.reshape(41, 41).T, vmin=-1, vmax=1, cmap="RdBu", extent=(0, 1, 0, 1))
    axis.set(title=label, xlabel="t")
axes[0].set_ylabel("x")
figure.tight_layout()
for label, (_, errors, _) in runs.items():
    print(f"{label:16} relative error at the end {errors[-1]:.3f}")
