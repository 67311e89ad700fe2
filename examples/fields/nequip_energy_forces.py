"""Energy and forces with NequIP: ``python examples/fields/nequip_energy_forces.py``.

NequIP's own loss balancing (SoftAdapt) is a callback that sets the coefficients of a sum. Here a
subclass of NequIP's training module passes the separate losses to the balancer. Needs
``pip install nequip``.
"""

from __future__ import annotations

import ase.build
import lightning
import numpy as np
import torch
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.train import NequIPLightningModule
from nequip.utils.global_state import set_global_state

from ntkmtl import Balancer
from ntkmtl.integrations.lightning import BalancedModule

CUTOFF = 4.0


class BalancedNequIP(BalancedModule, NequIPLightningModule):
    """NequIP's training module with balanced losses; the coefficients of its loss are not used."""

    def __init__(self, priorities: dict[str, float] | None = None, **options) -> None:
        super().__init__(**options)
        self.balancer = Balancer(priorities=priorities)

    def training_step(self, batch, batch_idx, dataloader_idx=0):
        """Balance the losses of a batch."""
        target = self.process_target(batch, batch_idx, dataloader_idx)
        found = self.loss(self(batch), target)
        return self.balance({n: loss for n, loss in found.items() if n != "weighted_sum"})


def samples(count: int) -> list[AtomicDataDict.Type]:
    """Return rattled cells of four atoms as NequIP takes them."""
    generator = np.random.default_rng(0)
    transforms = [ChemicalSpeciesToAtomTypeMapper(["Cu"]), NeighborListTransform(CUTOFF)]
    found = []
    for _ in range(count):
        atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
        atoms.positions += 0.1 * generator.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        data = from_ase(atoms)
        for transform in transforms:
            data = transform(data)
        found.append(data)
    return found


def main(epochs: int = 20) -> dict[str, float]:
    """Train; return what Lightning logged last."""
    set_global_state()
    lightning.seed_everything(0)
    module = BalancedNequIP(
        priorities={"forces_mse": 3},
        model={
            "_target_": "nequip.model.NequIPGNNModel",
            "seed": 0,
            "model_dtype": "float32",
            "r_max": CUTOFF,
            "type_names": ["Cu"],
            "num_layers": 2,
            "num_features": 8,
            "radial_mlp_width": 16,
            "avg_num_neighbors": 18.0,
        },
        loss={"_target_": "nequip.train.EnergyForceLoss"},
        optimizer={"_target_": "torch.optim.Adam", "lr": 1e-2},
        num_datasets={"train": 1, "val": 0, "test": 0, "predict": 0},
    )
    loader = torch.utils.data.DataLoader(
        samples(32), batch_size=8, shuffle=True, collate_fn=AtomicDataDict.batched_from_list
    )
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.3g}")
