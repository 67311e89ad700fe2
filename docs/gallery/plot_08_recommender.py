"""
A recommender with two towers
=============================

There are many clicks, but conversions are known for clicked items only. The second loss is passed
per sample with a mask, ``(values, mask)``: its mean is taken over the items that were clicked.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from ntkmtl import Balancer

torch.manual_seed(0)
USERS, ITEMS, SIZE = 200, 300, 4
tastes, traits = torch.randn(USERS, SIZE), torch.randn(ITEMS, SIZE)
worth = torch.randn(SIZE)


def draw(count):
    """Return users, items, clicks (one in ten or so) and conversions of the clicked."""
    user, item = torch.randint(USERS, (count,)), torch.randint(ITEMS, (count,))
    match = tastes[user] * traits[item]
    click = torch.rand(count) < (match.sum(1) - 3.0).sigmoid()
    bought = torch.rand(count) < (2 * match @ worth).sigmoid()
    return user, item, click.float(), (bought & click).float()


class Towers(nn.Module):
    """An embedding and a layer for users, the same for items, and two heads on what they share."""

    def __init__(self):
        super().__init__()
        self.users = nn.Sequential(nn.Embedding(USERS, 16), nn.Linear(16, 16))
        self.items = nn.Sequential(nn.Embedding(ITEMS, 16), nn.Linear(16, 16))
        self.click, self.buy = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, user, item):
        """Return the logits of a click and of a conversion."""
        joined = self.users(user) * self.items(item)
        return self.click(joined)[:, 0], self.buy(joined)[:, 0]


def auc(score, label):
    """Return the chance that a positive ranks before a negative."""
    order = score.argsort().argsort().double() + 1
    positives, negatives = label.sum(), (1 - label).sum()
    rank = (order * label).sum() - positives * (positives + 1) / 2
    return (rank / (positives * negatives)).item()


data, test = draw(40000), draw(20000)


def train(balancer, steps=800):
    """Train with a balancer, or with the plain sum if there is none."""
    torch.manual_seed(1)
    model = Towers()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    scores = []
    for step in range(steps):
        rows = torch.randint(len(data[0]), (512,))
        user, item, click, buy = (column[rows] for column in data)
        click_logit, buy_logit = model(user, item)
        clicked = click > 0
        losses = {
            "click": F.binary_cross_entropy_with_logits(click_logit, click, reduction="none"),
            "buy": (
                F.binary_cross_entropy_with_logits(buy_logit, buy, reduction="none"),
                clicked,
            ),
        }
        optimizer.zero_grad()
        if balancer is None:
            (losses["click"].mean() + losses["buy"][0][clicked].mean()).backward()
        else:
            balancer.backward(losses)
        optimizer.step()
        if step % 40 == 39:
            with torch.no_grad():
                logits = model(*test[:2])
            known = test[2] > 0
            scores.append((auc(logits[0], test[2]), auc(logits[1][known], test[3][known])))
    return scores


runs = {
    "plain sum": train(None),
    "Balancer()": train(Balancer()),
    'Balancer("ntkmtl-sr")': train(Balancer("ntkmtl-sr")),
}

# %%
# Area under the curve on pairs that were not trained on: of clicks, and of conversions among the
# clicked.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for label, scores in runs.items():
    for i, axis in enumerate(axes):
        axis.plot(range(40, 40 * len(scores) + 1, 40), [row[i] for row in scores], label=label)
axes[0].set(title="clicks", xlabel="step", ylabel="AUC")
axes[1].set(title="conversions", xlabel="step")
axes[1].legend()
figure.tight_layout()
for label, scores in runs.items():
    print(
        f"{label:24} best AUC: clicks {max(s[0] for s in scores):.3f}, conversions "
        f"{max(s[1] for s in scores):.3f}"
    )
