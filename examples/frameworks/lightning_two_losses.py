"""Two losses with Lightning: ``python examples/frameworks/lightning_two_losses.py``."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ntkmtl import Balancer
from ntkmtl.integrations.lightning import BalancedModule


class Net(BalancedModule, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.heads = nn.ModuleDict({"small": nn.Linear(16, 1), "large": nn.Linear(16, 1)})
        self.balancer = Balancer()

    def training_step(self, batch, batch_idx):
        x, *labels = batch
        z = self.trunk(x)
        losses = {
            name: nn.functional.mse_loss(head(z), label)
            for (name, head), label in zip(self.heads.items(), labels)
        }
        return self.balance(losses)  # plain training returns sum(losses.values())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


L.seed_everything(0)
x = torch.randn(64, 6)
data = TensorDataset(x, x[:, :1].tanh(), 100 * x[:, 1:2] * x[:, 2:3])
quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
trainer = L.Trainer(max_epochs=10, accelerator="cpu", **quiet)
trainer.fit(Net(), DataLoader(data, 16))
print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})
