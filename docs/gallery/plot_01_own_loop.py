"""
A loop of your own
==================

Two regressions on one trunk. The second target is a hundred times larger, so its squared error is
ten thousand times larger, and the plain sum trains the shared part for it alone. One line changes.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from ntkmtl import Balancer

torch.manual_seed(0)
x = torch.rand(512, 4) * 2 - 1
targets = {
    "small": torch.sin(3 * x[:, :1]) * x[:, 1:2],
    "large": 100 * torch.cos(3 * x[:, 2:3]) * x[:, 3:4],
}


def train(balancer, steps=600):
    """Train with a balancer, or with the plain sum if there is none."""
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    heads = nn.ModuleDict({name: nn.Linear(32, 1) for name in targets})
    optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=5e-3)
    history = []
    for _ in range(steps):
        z = trunk(x)
        losses = {name: (heads[name](z) - y).square().mean() for name, y in targets.items()}
        optimizer.zero_grad()
        if balancer is None:
            sum(losses.values()).backward()
        else:
            balancer.backward(losses)
        optimizer.step()
        # The share of the variance that is not explained yet: 1 for the mean, 0 for all of it.
        history.append([losses[name].item() / y.var().item() for name, y in targets.items()])
    return torch.tensor(history)


runs = {"plain sum": train(None), "Balancer()": train(Balancer())}

# %%
# Both tasks on one scale: the error relative to the target's variance.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axis, (i, name) in zip(axes, enumerate(targets), strict=True):
    for label, history in runs.items():
        axis.semilogy(history[:, i], label=label)
    axis.set(title=f"task {name}", xlabel="step")
axes[0].set_ylabel("squared error / variance")
axes[0].legend()
figure.tight_layout()

# %%
# At the end:

for label, history in runs.items():
    print(f"{label:12}", {name: f"{v:.4f}" for name, v in zip(targets, history[-1], strict=True)})
