"""
Dense tasks on a feature pyramid
================================

Segmentation, depth and a coarse heat map of the same image, each predicted from a different level.
No single tensor is "the shared representation", so methods that need you to name one do not fit;
the balancer finds the levels from the losses.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from ntkmtl import Balancer

torch.manual_seed(0)


def scenes(count, size=24):
    """Return images of a bright disc before a slope, with a mask, a depth and a heat map."""
    grid = torch.linspace(-1, 1, size)
    center = torch.rand(count, 2, 1, 1) - 0.5
    radius = 0.25 + 0.25 * torch.rand(count, 1, 1)
    far = (grid.reshape(1, 1, -1) - center[:, 0]).square()
    far = far + (grid.reshape(1, -1, 1) - center[:, 1]).square()
    mask = (far < radius**2).float()
    depth = 20 + 10 * grid.reshape(1, -1, 1).expand(count, size, size) - 12 * mask
    image = depth / 40 + 0.5 * mask + 0.1 * torch.randn(count, size, size)
    heat = F.avg_pool2d(mask[:, None], 4)[:, 0]
    return image[:, None], {"mask": mask, "depth": depth, "heat": 0.1 * heat}


class Pyramid(nn.Module):
    """Two levels, the coarse one added to the fine one, and a head for each task."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(1, 12, 3, padding=1)
        self.middle = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.mask, self.depth = nn.Conv2d(12, 1, 3, padding=1), nn.Conv2d(12, 1, 3, padding=1)
        self.heat = nn.Conv2d(12, 1, 1)

    def forward(self, image):
        """Return a map for each task."""
        fine = self.fine(image).relu()
        middle = self.middle(fine).relu()
        coarse = self.coarse(middle).relu()
        up = middle + F.interpolate(coarse, scale_factor=2.0)
        merged = fine + F.interpolate(up, scale_factor=2.0)
        return {
            "mask": self.mask(merged)[:, 0],
            "depth": F.interpolate(self.depth(up), scale_factor=2.0)[:, 0],
            "heat": self.heat(coarse)[:, 0],
        }


def losses_of(outputs, labels):
    """Return a loss for each task."""
    return {
        "mask": F.binary_cross_entropy_with_logits(outputs["mask"], labels["mask"]),
        "depth": (outputs["depth"] - labels["depth"]).square().mean(),
        "heat": (outputs["heat"] - labels["heat"]).square().mean(),
    }


images, labels = scenes(256)


def train(balancer, steps=400):
    """Train with a balancer, or with the plain sum if there is none."""
    torch.manual_seed(1)
    model = Pyramid()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        rows = torch.randint(len(images), (32,))
        losses = losses_of(model(images[rows]), {k: v[rows] for k, v in labels.items()})
        optimizer.zero_grad()
        if balancer is None:
            sum(losses.values()).backward()
        else:
            balancer.backward(losses)
        optimizer.step()
        history.append([loss.item() for loss in losses.values()])
    return model, torch.tensor(history)


runs = {"plain sum": train(None), "Balancer()": train(Balancer())}

# %%
# Each task's loss over training. The depth is in meters, the heat map in tenths.

figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for i, (axis, name) in enumerate(zip(axes, labels, strict=True)):
    for label, (_, history) in runs.items():
        axis.semilogy(history[:, i], label=label)
    axis.set(title=name, xlabel="step")
axes[0].legend()
figure.tight_layout()

# %%
# On new images:

image, truth = scenes(1)
figure, axes = plt.subplots(3, 3, figsize=(5.6, 5.6))
rows = [("truth", truth)]
for label, (model, _) in runs.items():
    with torch.no_grad():
        outputs = model(image)
    rows.append((label, outputs | {"mask": outputs["mask"].sigmoid()}))
for row, (label, maps) in zip(axes, rows, strict=True):
    for axis, name in zip(row, labels, strict=True):
        low, high = truth[name].min(), truth[name].max()
        axis.imshow(maps[name][0], vmin=low, vmax=high)
        axis.set(xticks=[], yticks=[], title=name if label == "truth" else "")
    row[0].set_ylabel(label)
figure.tight_layout()

# %%
# The levels, found from the losses:

model = runs["Balancer()"][0]
Balancer().explain(losses_of(model(images[:8]), {k: v[:8] for k, v in labels.items()}), model=model)
