"""Adapters of peft in a frozen trunk, balanced through the integrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainingArguments

import framework_tasks as tasks
from ntkmtl import Balancer
from ntkmtl.integrations.lightning import BalancedModule
from ntkmtl.integrations.transformers import BalancedTrainer

CONFIG = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)


class Module(BalancedModule, pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = tasks.Net()
        self.net.trunk = peft.get_peft_model(self.net.trunk, CONFIG)  # type: ignore[assignment]
        self.balancer = Balancer("ntkmtl")

    def compute_losses(self, batch: Any) -> Any:
        return tasks.mean_squares(self.net(batch[0]), batch[1:])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_adapters_are_the_shared_parameters() -> None:
    module = tasks.seeded(Module)
    x, *labels = tasks.data()
    losses = module.compute_losses((x, *labels))
    found = module.balancer.explain(losses, model=module)
    assert len(found.shared) == 4
    assert all("lora" in name for name in found.shared)
    out = module.balancer.backward(losses)
    adapters = [p for n, p in module.named_parameters() if "lora" in n]
    assert all(p.grad is not None for p in adapters)
    # The kernel of a whole batch is the squared length of the adapters' gradient.
    for i, loss in enumerate(module.compute_losses((x, *labels)).values()):
        gradients = torch.autograd.grad(loss, adapters, retain_graph=True)
        square = sum(float(g.double().square().sum()) for g in gradients)
        assert float(out.eigenvalues[i]) == pytest.approx(square, rel=1e-5)


def test_lightning_trains_adapters_and_heads_only() -> None:
    module = tasks.seeded(Module)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*tasks.data()), 8))
    for name, parameter in module.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora" in name or "heads" in name), name


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tasks.Net()

    def forward(self, x: Any, small: Any, large: Any) -> dict[str, Any]:
        losses = tasks.mean_squares(self.net(x), (small, large))
        return {"loss": sum(losses.values()), "losses": losses}  # type: ignore[arg-type]


def test_the_trainer_takes_a_peft_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["trunk.0", "trunk.2"], modules_to_save=["small", "large"]
    )
    model = peft.get_peft_model(Model(), config)  # type: ignore[arg-type]
    rows = [
        {"x": x, "small": small, "large": large}
        for x, small, large in zip(*tasks.data(), strict=True)
    ]
    trainer = BalancedTrainer(
        model,
        TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            max_steps=3,
            remove_unused_columns=False,
            label_names=["small", "large"],
            logging_steps=1,
        ),
        train_dataset=rows,
        balancer=Balancer("ntkmtl"),
    )
    trainer.train()
    AcceleratorState._reset_state(True)
    weights = [r["weight/small"] for r in trainer.state.log_history if "weight/small" in r]
    assert len(weights) == 3
    assert all(weight > 1 for weight in weights)
