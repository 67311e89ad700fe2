"""
Fine-tuning with LoRA and several heads
=======================================

A frozen encoder, low-rank adapters in it, and three heads. Only what is trained counts as shared:
here that is the adapters, and the balancer finds them by itself.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from ntkmtl import Balancer

torch.manual_seed(0)
WORDS, LENGTH, WIDTH = 30, 12, 32


class LoRA(nn.Module):
    """A frozen linear layer plus a product of two small ones."""

    def __init__(self, layer, rank=4):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        """Return the sum of both."""
        return self.layer(x) + self.up(self.down(x))


class Model(nn.Module):
    """An encoder that stands for a pre-trained one, and three heads."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH).requires_grad_(False)
        self.layers = nn.ModuleList(LoRA(nn.Linear(WIDTH, WIDTH)) for _ in range(3))
        self.topic, self.tag = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 2)
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, text):
        """Return logits of a topic, logits of a tag for each word, and a score."""
        h = self.words(text)
        for layer in self.layers:
            h = h + layer(h).tanh() + layer(h.mean(1, keepdim=True)).tanh()
        pooled = h.mean(1)
        return self.topic(pooled), self.tag(h), self.score(pooled)[:, 0]


def sentences(count):
    """Return texts and labels: the most frequent kind of word, odd words, a large number."""
    text = torch.randint(WORDS, (count, LENGTH))
    kinds = F.one_hot(text % 3, 3).sum(1)
    return text, kinds.argmax(1), text % 2, 20 * (text % 7).float().mean(1)


def losses_of(model, text, topic, tag, score):
    """Return a loss for each head."""
    topics, tags, scores = model(text)
    return {
        "topic": F.cross_entropy(topics, topic),
        "tag": F.cross_entropy(tags.flatten(0, 1), tag.flatten()),
        "score": (scores - score).square().mean(),
    }


train_set, test_set = sentences(2000), sentences(1000)


def train(balancer, steps=500):
    """Train with a balancer, or with the plain sum if there is none."""
    torch.manual_seed(1)
    model = Model()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=5e-3)
    history = []
    for step in range(steps):
        rows = torch.randint(len(train_set[0]), (64,))
        losses = losses_of(model, *(column[rows] for column in train_set))
        optimizer.zero_grad()
        if balancer is None:
            sum(losses.values()).backward()
        else:
            balancer.backward(losses)
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                found = losses_of(model, *test_set)
            history.append([loss.item() for loss in found.values()])
    return model, torch.tensor(history)


runs = {"plain sum": train(None), "Balancer()": train(Balancer())}

# %%
# Test losses of the heads:

figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for i, (axis, name) in enumerate(zip(axes, ("topic", "tag", "score"), strict=True)):
    for label, (_, history) in runs.items():
        axis.semilogy(range(0, 10 * len(history), 10), history[:, i], label=label)
    axis.set(title=name, xlabel="step")
axes[0].legend()
figure.tight_layout()

# %%
# What is shared: the adapters, and nothing that is frozen.

model = runs["Balancer()"][0]
found = Balancer().explain(losses_of(model, *(column[:16] for column in train_set)), model=model)
assert all("layer." not in name.replace("layers.", "") for name in found.shared)
