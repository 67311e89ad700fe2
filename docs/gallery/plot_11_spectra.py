"""
Spectra and affinity
====================

What the kernel shows about a network before and during training: which tasks have large eigenvalues
and will dominate, which tasks' gradients agree, and how to group the tasks.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from ntkmtl import extended_ntk
from ntkmtl.analysis import extended_spectrum, group_tasks, imbalance, task_spectra

torch.manual_seed(0)
x = torch.randn(128, 6)
a, b = x[:, :1], x[:, 1:2]
targets = {
    "sum": a + b,
    "double sum": 2 * (a + b) + 0.1 * x[:, 2:3],
    "negative sum": -(a + b),
    "product": a * b,
    "loud product": 10 * a * b,
}
trunk = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
heads = nn.ModuleList(nn.Linear(32, 1) for _ in targets)
for head in heads[1:]:
    head.load_state_dict(heads[0].state_dict())  # alike, so that only the targets differ
z = trunk(x)
losses = [(head(z) - y).square().mean() for head, y in zip(heads, targets.values(), strict=True)]

# %%
# The extended NTK with respect to the trunk's parameters, for 8 mini-batches: shape (k, n, k, n).

K = extended_ntk(losses, features=z, parameters=trunk.parameters(), minibatches=8)
print(K)
largest = K.max_eigenvalues()
for name, value in zip(targets, largest, strict=True):
    print(f"{name:14} largest eigenvalue {value:.4g}")
print(f"largest over smallest: {imbalance(largest):.0f}")

# %%
# The spectrum of each task, and the cosines between the tasks' gradients:

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for name, spectrum in zip(targets, task_spectra(K), strict=True):
    axes[0].semilogy(range(1, 9), spectrum, marker="o", label=name)
axes[0].set(xlabel="number", ylabel="eigenvalue of the task's block")
axes[0].legend(fontsize="small")
affinity = K.affinity()
picture = axes[1].imshow(affinity, vmin=-1, vmax=1, cmap="RdBu")
axes[1].set_xticks(range(len(targets)), targets, rotation=40, ha="right")
axes[1].set_yticks(range(len(targets)), targets)
figure.colorbar(picture, label="cosine of gradients")
figure.tight_layout()

# %%
# Tasks that could share a network, and those that should not:

print(group_tasks(affinity).names(list(targets)))

# %%
# Weighting makes the largest eigenvalues of the blocks equal (Eq. 15). It removes the imbalance
# between tasks, but does not change the spectrum within each: the matrix looks much as before.

weights = (largest.mean() / largest).sqrt()
figure, axis = plt.subplots(figsize=(6, 3.2))
for label, kernel in (("plain sum", K), ("weighted", K.weighted(weights))):
    spectrum = extended_spectrum(kernel)
    axis.semilogy(spectrum[spectrum > 1e-9 * spectrum[0]], label=label)
axis.set(xlabel="number", ylabel="eigenvalue of the extended NTK")
axis.legend()
figure.tight_layout()
