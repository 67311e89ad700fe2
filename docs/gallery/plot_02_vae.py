"""
A variational autoencoder
=========================

A VAE has no trunk with heads, and the ratio of KL term and reconstruction (the beta) is usually
tuned by hand for each image size and each way of averaging. The balancer finds what the two losses
share, and a priority replaces the beta: it says how much the KL term should matter *after* both
have been brought to the same scale.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from ntkmtl import Balancer

torch.manual_seed(0)


def bars(count):
    """Return images of 12 x 12 with a soft spot at a random place and of a random width."""
    grid = torch.linspace(-1, 1, 12)
    place, width = torch.rand(count, 2, 1) * 1.4 - 0.7, 0.15 + 0.35 * torch.rand(count, 1, 1)
    x = (grid - place[:, :1]).square().reshape(count, 1, 12)
    y = (grid - place[:, 1:]).square().reshape(count, 12, 1)
    return (-(x + y) / width**2).exp().flatten(1)


images = bars(1024)


class VAE(nn.Module):
    """An encoder to three numbers, and a decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(144, 64), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(64, 3), nn.Linear(64, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 144))

    def forward(self, x):
        """Return the reconstruction and the two losses."""
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        out = self.decoder(z)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean()
        return out, {"reconstruction": (out - x).square().mean(), "kl": kl}


def train(balancer, steps=800):
    """Train with a balancer, or with the plain sum if there is none."""
    torch.manual_seed(1)
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        _, losses = model(images[torch.randint(len(images), (128,))])
        optimizer.zero_grad()
        if balancer is None:
            sum(losses.values()).backward()
        else:
            balancer.backward(losses)
        optimizer.step()
    return model


# %%
# With a mean over pixels, as in many implementations, the KL term dominates the plain sum: the code
# is ignored, and every reconstruction is the mean image (posterior collapse). Equal weights on the
# same scale still give the KL term too much weight. A priority of a tenth works.

models = {
    "plain sum": train(None),
    "Balancer()": train(Balancer()),
    'priorities={"kl": 0.1}': train(Balancer(priorities={"kl": 0.1})),
}
shown = bars(6)
figure, axes = plt.subplots(len(models) + 1, 6, figsize=(6, 4.4))
rows = [("image", shown)]
for label, model in models.items():
    with torch.no_grad():
        out, losses = model(shown)
    rows.append((label, out))
    print(f"{label:24}", {name: round(loss.item(), 4) for name, loss in losses.items()})
for row, (label, pictures) in zip(axes, rows, strict=True):
    for axis, picture in zip(row, pictures, strict=True):
        axis.imshow(picture.reshape(12, 12), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(label, rotation=0, ha="right", va="center")
figure.tight_layout()

# %%
# What the balancer finds that the two losses share:

_, losses = models["Balancer()"](shown)
Balancer().explain(losses, model=models["Balancer()"])
