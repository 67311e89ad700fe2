"""Two losses with Accelerate: ``python examples/frameworks/accelerate_two_losses.py``."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ntkmtl import Balancer
from ntkmtl.integrations.accelerate import BalancedAccelerator


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.small, self.large = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x):
        z = self.trunk(x)
        return {"small": self.small(z), "large": self.large(z)}


torch.manual_seed(0)
x = torch.randn(64, 6)
data = TensorDataset(x, x[:, :1].tanh(), 100 * x[:, 1:2] * x[:, 2:3])
accelerator = BalancedAccelerator(Balancer(), gradient_accumulation_steps=2)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
net, optimizer, loader = accelerator.prepare(net, optimizer, DataLoader(data, 16, shuffle=True))

for _ in range(10):
    for x, *labels in loader:
        with accelerator.accumulate(net):
            pairs = zip(net(x).items(), labels)
            losses = {name: nn.functional.mse_loss(out, y) for (name, out), y in pairs}
            result = accelerator.backward(losses)  # plain training passes sum(losses.values())
            optimizer.step()
            optimizer.zero_grad()
print("last weights:", dict(zip(losses, result.weights.tolist())))
