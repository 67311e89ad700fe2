"""Two losses with the Trainer: ``python examples/frameworks/transformers_two_losses.py``."""

import tempfile

import torch
from torch import nn
from transformers import BertConfig, BertModel, TrainingArguments

from ntkmtl import Balancer
from ntkmtl.integrations.transformers import BalancedTrainer

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = BertModel(BertConfig(intermediate_size=32, **SIZES), add_pooling_layer=False)
        self.topic, self.length = nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, input_ids, topic, length):
        z = self.trunk(input_ids).last_hidden_state.mean(dim=1)
        losses = {
            "topic": nn.functional.cross_entropy(self.topic(z), topic),
            "length": nn.functional.mse_loss(self.length(z)[:, 0], length),
        }
        return {"loss": sum(losses.values()), "losses": losses}


torch.manual_seed(0)
tokens = torch.randint(20, (64, 8))
data = [{"input_ids": row, "topic": row[0] % 3, "length": row.float().mean()} for row in tokens]
with tempfile.TemporaryDirectory() as folder:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    args = TrainingArguments(folder, max_steps=60, learning_rate=1e-2, logging_steps=20, **quiet)
    trainer = BalancedTrainer(Model(), args, train_dataset=data, balancer=Balancer())
    trainer.train()
