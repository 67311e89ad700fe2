"""``ntkmtl.integrations.lightning`` against plain training with Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import framework_tasks as tasks
from ntkmtl import Balancer
from ntkmtl.integrations.lightning import BalancedModule

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Module(BalancedModule, pl.LightningModule):
    def __init__(self, method: str = "ntkmtl-auto", optimizer: str = "Adam", **options: Any):
        super().__init__()
        self.net = tasks.Net()
        self.balancer = Balancer(method, tasks=list(tasks.TASKS), **options)
        self.optimizer = optimizer

    def compute_losses(self, batch: Any) -> Any:
        return tasks.mean_squares(self.net(batch[0]), batch[1:])

    def configure_optimizers(self) -> Any:
        parameters = [*self.parameters(), *self.balancer.parameters()]
        return getattr(torch.optim, self.optimizer)(parameters, lr=1e-2)


class Plain(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return sum(self.compute_losses(batch).values())

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)


class Manual(Module):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ManualPlain(Plain):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Keeping(DummyLogger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.kept.append(dict(metrics))


def fit(
    module: pl.LightningModule, batch: int = 8, rank: int | None = None, **settings: Any
) -> Any:
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2, **settings})
    dataset = TensorDataset(*tasks.data())
    sampler = None if rank is None else DistributedSampler(dataset, 2, rank, shuffle=False)
    trainer.fit(module, DataLoader(dataset, batch, sampler=sampler))
    return trainer


def weights_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
        {"precision": "bf16-mixed"},
    ],
    ids=["plain", "accumulation and clipping", "bf16"],
)
def test_ls_is_plain_training(settings: dict[str, Any]) -> None:
    ours, plain = (tasks.seeded(lambda kind=kind: kind("ls")) for kind in (Module, Plain))
    for module in (ours, plain):
        fit(module, **settings)
    assert_same(weights_of(ours), weights_of(plain))


def test_ls_is_plain_training_with_a_gradient_scaler() -> None:
    found = []
    for kind in (Module, Plain):
        module = tasks.seeded(lambda kind=kind: kind("ls"))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        fit(module, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        assert scaler.get_scale() >= 2.0
        found.append(weights_of(module))
    assert_same(*found)


def test_manual_optimization() -> None:
    ours, plain = (tasks.seeded(lambda kind=kind: kind("ls")) for kind in (Manual, ManualPlain))
    for module in (ours, plain):
        fit(module)
    assert_same(weights_of(ours), weights_of(plain))


def test_what_is_logged() -> None:
    logger = Keeping()
    fit(Module("ntkmtl"), max_epochs=1, logger=logger, log_every_n_steps=1)
    steps = [metrics for metrics in logger.kept if "weight/small" in metrics]
    assert len(steps) == 4
    kinds = ("loss", "weight", "eigenvalue")
    assert {f"{kind}/{task}" for kind in kinds for task in tasks.TASKS} <= set(steps[0])
    # Eq. 15 with exponent 1/2: the weights' ratio is that of the eigenvalues' roots.
    ratio = steps[0]["eigenvalue/large"] / steps[0]["eigenvalue/small"]
    assert steps[0]["weight/small"] / steps[0]["weight/large"] == pytest.approx(
        ratio**0.5, rel=1e-5
    )


@pytest.mark.parametrize("method", ["famo", "uw", "dwa"])
def test_methods_that_need_more_than_backward(method: str) -> None:
    module = Module(method)
    fit(module, max_epochs=3)
    learned = module.balancer.backward(module.compute_losses([t[:8] for t in tasks.data()]))
    assert len(set(learned.weights.tolist())) == 2  # equal where nothing was learned


@pytest.mark.parametrize("method", ["ntkmtl-auto", "famo"])
def test_resume(method: str, tmp_path: Path) -> None:
    whole = tasks.seeded(lambda: Module(method))
    fit(whole, max_epochs=4)
    first, second = (tasks.seeded(lambda: Module(method)) for _ in range(2))
    fit(first, max_epochs=2).save_checkpoint(tmp_path / "a.ckpt")
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 4})
    trainer.fit(second, DataLoader(TensorDataset(*tasks.data()), 8), ckpt_path=tmp_path / "a.ckpt")
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(whole), weights_of(second), strict=True)
    )


@pytest.mark.parametrize("method", ["famo", "dwa"])
@pytest.mark.parametrize("step", [2, 4])  # in an epoch, and with its last batch
def test_resume_from_a_checkpoint_of_a_step(method: str, step: int, tmp_path: Path) -> None:
    """Callbacks save before the module's own hook of the same batch."""
    same = [torch.cat([part[:8]] * 4) for part in tasks.data()]  # Lightning begins the data anew
    loader = DataLoader(TensorDataset(*same), 8)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    settings = {**QUIET, "max_epochs": 4}
    whole, second = (tasks.seeded(lambda: Module(method)) for _ in range(2))
    trainer = pl.Trainer(**{**settings, "enable_checkpointing": True}, callbacks=[saving])
    trainer.fit(whole, loader)
    resumed = pl.Trainer(**settings)
    resumed.fit(second, loader, ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(whole), weights_of(second), strict=True)
    )


def test_a_checkpoint_without_a_balancer_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no state of a Balancer"):
        Module().on_load_checkpoint({"state_dict": {}})


def test_lbfgs_compares_losses_of_the_same_weights() -> None:
    module = Module("si", optimizer="LBFGS")
    seen: list[list[tuple[float, ...]]] = [[]]
    original = module.balancer.backward

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen[-1].append(tuple(result.weights.tolist()))
        return result

    module.balancer.backward = spy  # type: ignore[method-assign]

    class Cut(pl.Callback):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append([])

    fit(module, max_epochs=1, callbacks=[Cut()])
    steps = [step for step in seen if step]
    assert len(steps) == 4
    assert all(len(step) > 1 and len(set(step)) == 1 for step in steps)
    assert len({step[0] for step in steps}) == 4


def test_lbfgs_refuses_a_method_without_weights_to_hold() -> None:
    with pytest.raises(ValueError, match="cannot be held"):
        fit(Module("graddrop", optimizer="LBFGS"), max_epochs=1)


def test_lbfgs_gets_the_value_of_what_it_differentiates() -> None:
    """A line search ends elsewhere if values are of the plain sum."""

    class Searching(Module):
        def configure_optimizers(self) -> Any:
            parameters = self.parameters()
            return torch.optim.LBFGS(parameters, lr=1.0, line_search_fn="strong_wolfe")

    module = tasks.seeded(lambda: Searching("si"))
    fit(module, max_epochs=1)

    net = tasks.seeded(tasks.Net)
    balancer = Balancer("si", tasks=list(tasks.TASKS))
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1.0, line_search_fn="strong_wolfe")
    for x, *labels in DataLoader(TensorDataset(*tasks.data()), 8):

        def closure(x: Any = x, labels: Any = labels) -> Any:
            optimizer.zero_grad()
            return balancer.backward(tasks.mean_squares(net(x), labels)).total

        with balancer.hold():
            optimizer.step(closure)
    assert_same(weights_of(module.net), weights_of(net))


def test_a_batch_without_labels_is_left_out() -> None:
    class Unlabeled(Module):
        def compute_losses(self, batch: Any) -> Any:
            return dict.fromkeys(tasks.TASKS)

    module = tasks.seeded(Unlabeled)
    before = weights_of(module)
    fit(module, max_epochs=1)
    assert_same(before, weights_of(module))


def test_a_batch_that_training_step_skips_is_left_out() -> None:
    class Skipping(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    module = tasks.seeded(lambda: Skipping("famo"))
    fit(module, max_epochs=1)

    net = tasks.seeded(tasks.Net)
    balancer = Balancer("famo", tasks=list(tasks.TASKS))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for i, (x, *labels) in enumerate(DataLoader(TensorDataset(*tasks.data()), 8)):
        if i != 1:
            optimizer.zero_grad()
            balancer.backward(tasks.mean_squares(net(x), labels))
            optimizer.step()
            balancer.after_step(tasks.mean_squares(net(x), labels))
    assert_same(weights_of(module.net), weights_of(net))


def test_a_second_fit_counts_its_own_steps() -> None:
    module = Module("famo")
    told: list[int] = []
    module.balancer.after_step = lambda losses: told.append(0)  # type: ignore[method-assign]
    for _ in range(2):
        fit(module, max_epochs=1, limit_train_batches=1)
    assert len(told) == 2


def test_errors() -> None:
    class Forgets(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(self.compute_losses(batch).values())

    with pytest.raises(RuntimeError, match=r"must return self\.balance"):
        fit(Forgets(), max_epochs=1)
    module = Module()
    module.balancer = "ntkmtl"  # type: ignore[assignment]
    losses = module.compute_losses(tasks.data())
    with pytest.raises(TypeError, match=r"self\.balancer must be an ntkmtl\.Balancer"):
        module.balance(losses)


def test_the_mixin_after_the_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"class Wrong\(BalancedModule, LightningModule\)"):

        class Wrong(pl.LightningModule, BalancedModule):
            pass


def test_a_backward_pass_around_the_balance_is_refused() -> None:
    class Around(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            self.balance(self.compute_losses(batch)).backward()
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"call self\.manual_backward"):
        fit(Around("ls"), max_epochs=1)


class Twice(Manual):
    """Calls balance for two sets of losses before it runs the first backward pass."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first = self.balance(self.compute_losses(batch))
        self.balance(self.compute_losses(batch))
        self.manual_backward(first)


class Changed(Module):
    """Returns something else than ``balance`` did."""

    change: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return type(self).change(super().training_step(batch, batch_idx), self)


class Term(Changed):
    @staticmethod
    def change(total: Any, module: Any) -> Any:
        return total + sum(p.square().sum() for p in module.net.parameters())


class Factor(Changed):
    @staticmethod
    def change(total: Any, module: Any) -> Any:
        return 0.5 * total


class OtherLoss(Changed):
    @staticmethod
    def change(total: Any, module: Any) -> Any:
        return next(module.parameters()).sum()


@pytest.mark.parametrize("kind", [Twice, Term, Factor, OtherLoss])
def test_changes_of_the_sum_are_refused(kind: type[Module]) -> None:
    with pytest.raises(ValueError, match="is not the sum of the losses that was kept"):
        fit(kind("ls"), max_epochs=1)


def test_a_factor_besides_the_accumulation_is_refused() -> None:
    class Scaled(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.balance(self.compute_losses(batch), scale=0.5)

    with pytest.raises(ValueError, match="scale is for manual optimization"):
        fit(Scaled("ls"), max_epochs=1)


def test_a_further_term_is_given_as_extra() -> None:
    class Extra(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            term = sum(p.square().sum() for p in self.net.parameters())
            return self.balance(self.compute_losses(batch), extra=term)

    class PlainExtra(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            term = sum(p.square().sum() for p in self.net.parameters())
            return super().training_step(batch, batch_idx) + term

    ours, plain = (tasks.seeded(lambda kind=kind: kind("ls")) for kind in (Extra, PlainExtra))
    for module in (ours, plain):
        fit(module)
    assert_same(weights_of(ours), weights_of(plain))


def test_extra_counts_in_a_batch_without_labels() -> None:
    class Extra(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            term = sum(p.square().sum() for p in self.net.parameters())
            return self.balance(dict.fromkeys(tasks.TASKS), extra=term)

    class PlainExtra(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(p.square().sum() for p in self.net.parameters())

    ours, plain = (tasks.seeded(lambda kind=kind: kind("ls")) for kind in (Extra, PlainExtra))
    before = weights_of(ours)
    for module in (ours, plain):
        fit(module)
    assert_same(weights_of(ours), weights_of(plain))
    assert any(not torch.equal(a, b) for a, b in zip(before, weights_of(ours), strict=True))


def test_balance_gives_the_sum_in_validation() -> None:
    class Validated(Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("validation", self.balance(self.compute_losses(batch)))

    module, data = Validated(), DataLoader(TensorDataset(*tasks.data()), 8)
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1})
    trainer.fit(module, data, data)
    expected = sum(module.compute_losses(tasks.data()).values())
    assert float(trainer.callback_metrics["validation"]) == pytest.approx(float(expected))


def test_a_module_that_is_compiled_whole() -> None:
    ours, plain = (tasks.seeded(lambda kind=kind: kind("ls")) for kind in (Module, Plain))
    fit(torch.compile(ours, backend="aot_eager"), accumulate_grad_batches=2)
    fit(plain, accumulate_grad_batches=2)
    assert_same(weights_of(ours), weights_of(plain))


def test_a_frozen_trunk_has_nothing_to_balance() -> None:
    module = Module()
    module.net.trunk.requires_grad_(False)
    before = [p.clone() for p in module.net.trunk.parameters()]
    logger = Keeping()
    with pytest.warns(UserWarning, match="share"):
        fit(module, max_epochs=1, logger=logger, log_every_n_steps=1)
    assert_same(before, list(module.net.trunk.parameters()))
    assert {m["weight/small"] for m in logger.kept if "weight/small" in m} == {1.0}


def train_in_two(rank: int, folder: Path, method: str, unused: bool) -> None:
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=unused)
    module = tasks.seeded(lambda: Module(method))
    fit(module, batch=4, rank=rank, strategy=strategy, devices=2, use_distributed_sampler=False)
    torch.save(weights_of(module), folder / f"{rank}.pt")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "unused"), [("ls", False), ("ls", True), ("ntkmtl-auto", False)]
)
def test_two_processes(method: str, unused: bool, tmp_path: Path) -> None:
    tasks.launch(train_in_two, tmp_path, method, unused)
    first, second = tasks.both(tmp_path)
    assert_same(first, second)
    if method == "ls":
        plain = tasks.seeded(lambda: Plain("ls"))
        fit(plain)
        assert_same(first, weights_of(plain))


def test_static_graph_is_refused() -> None:
    module = Module()
    module.balance(module.compute_losses(tasks.data()))

    class Trainer:
        model = type("DDP", (), {"static_graph": True})()

    module._fabric = None
    module._trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="static_graph"):
        module.backward(torch.zeros(()))


@pytest.mark.integration
def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, ntkmtl.integrations; "
        "assert not {'lightning', 'transformers', 'accelerate', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate", "keras"])
def test_a_missing_package_is_an_error_with_the_install_command(name: str) -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in ({name!r}, 'pytorch_lightning'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n: None if 'lightning' in n else find(n)\n"
        f"import ntkmtl.integrations.{name}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install 'ntkmtl[{name}]'" in done.stderr
