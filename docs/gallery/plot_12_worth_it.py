"""
Is balancing worth it for my run?
=================================

Three questions before you change a run: are the eigenvalues far apart, does that last, and does the
metric that you care about improve over a few seeds? If the first answer is no, keep the plain sum.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import ntkmtl
from ntkmtl import Balancer
from ntkmtl.analysis import imbalance

torch.manual_seed(0)
x, x_test = torch.rand(256, 5) * 2 - 1, torch.rand(1024, 5) * 2 - 1


def labels(points, scale):
    """Return two targets; the second one has another scale."""
    first = torch.sin(3 * points[:, :1]) + points[:, 1:2] * points[:, 2:3]
    return [first, scale * torch.cos(3 * points[:, 3:4]) * points[:, 4:]]


def losses_of(trunk, heads, points, targets):
    """Return mean squared errors."""
    z = trunk(points)
    return [(head(z) - y).square().mean() for head, y in zip(heads, targets, strict=True)]


def run(scale, balanced, seed, steps=300):
    """Return the imbalance over training and the mean unexplained share of the test variance."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(5, 48), nn.Tanh(), nn.Linear(48, 24), nn.Tanh())
    heads = nn.ModuleList(nn.Linear(24, 1) for _ in range(2))
    optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=5e-3)
    targets, test = labels(x, scale), labels(x_test, scale)
    weigh, watch, ratios = Balancer(), Balancer("ntkmtl-sr", minibatches=1), []
    for _ in range(steps):
        losses = losses_of(trunk, heads, x, targets)
        # First look: what `ntkmtl-sr` reads costs next to nothing. Throw its gradients away.
        optimizer.zero_grad()
        ratios.append(imbalance(watch.backward(losses).eigenvalues))
        optimizer.zero_grad()
        losses = losses_of(trunk, heads, x, targets)
        weigh.backward(losses) if balanced else sum(losses).backward()
        optimizer.step()
    with torch.no_grad():
        errors = losses_of(trunk, heads, x_test, test)
        return ratios, sum((e / y.var()).item() for e, y in zip(errors, test, strict=True)) / 2


# %%
# Two versions of one problem: targets of equal scale, and one of them fifty times larger. Three
# seeds each.

results = {
    (scale, balanced): [run(scale, balanced, seed) for seed in range(3)]
    for scale in (1, 50)
    for balanced in (False, True)
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for scale, color in ((1, "tab:blue"), (50, "tab:orange")):
    for ratios, _ in results[scale, False]:
        axes[0].semilogy(ratios, color=color, linewidth=0.8)
    axes[0].plot([], [], color=color, label=f"second target x {scale}")
axes[0].set(xlabel="step", ylabel="largest / smallest eigenvalue", title="under the plain sum")
axes[0].legend()
for i, ((scale, _), outcomes) in enumerate(results.items()):
    errors = [error for _, error in outcomes]
    axes[1].scatter([i] * 3, errors, color="tab:blue" if scale == 1 else "tab:orange")
ticks = [f"x {scale}\n{'Balancer()' if b else 'sum'}" for scale, b in results]
axes[1].set_xticks(range(4), ticks)
axes[1].set(ylabel="unexplained test variance", title="three seeds")
axes[1].set_ylim(bottom=0)
figure.tight_layout()

# %%
# If the ratio stays within a factor of ten or so, there is little to balance; if it is a thousand
# and stays there, the weights are worth the extra time. The spread over seeds shows whether a
# difference is real. Then ask for the lines of code:

trunk, heads = nn.Sequential(nn.Linear(5, 8), nn.Tanh()), [nn.Linear(8, 1) for _ in range(2)]
advice = ntkmtl.advise(losses_of(trunk, heads, x, labels(x, 50)), keep_learning_rate=True)
