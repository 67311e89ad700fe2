"""``ntkmtl.integrations.transformers`` against plain training with the Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import framework_tasks as tasks
from ntkmtl import Balancer
from ntkmtl.integrations.transformers import BalancedTrainer


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tasks.Net()

    def forward(self, x: Tensor, small: Tensor, large: Tensor, **kwargs: Any) -> dict[str, Any]:
        outputs = self.net(x)
        losses = tasks.mean_squares(outputs, (small, large))
        return {
            "loss": sum(losses.values()),  # type: ignore[arg-type]
            "losses": losses,
            "logits": torch.cat(list(outputs.values()), dim=1),
        }


def dataset() -> list[dict[str, Tensor]]:
    return [
        {"x": x, "small": small, "large": large}
        for x, small, large in zip(*tasks.data(), strict=True)
    ]


def trainer(
    method: str | None, folder: Path, model: nn.Module | None = None, **settings: Any
) -> Any:
    forget()
    arguments = TrainingArguments(
        str(folder),
        **{
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 8,
            "label_names": ["small", "large"],
            "num_train_epochs": 2,
            **settings,
        },
    )
    kind: Any = Trainer
    balanced: dict[str, Any] = {}
    if method is not None:
        kind = BalancedTrainer
        balanced = {"balancer": Balancer(method)}
    return kind(
        model or tasks.seeded(Model),
        arguments,
        train_dataset=dataset(),
        eval_dataset=dataset(),
        **balanced,
    )


def numbers(trained: Any) -> list[Tensor]:
    model = trained.accelerator.unwrap_model(trained.model)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}, {"bf16": True}],
    ids=["plain", "accumulation and clipping", "bf16"],
)
def test_ls_is_plain_training(settings: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for method in ("ls", None):
        # The plain Trainer would divide by the number of items, as forward takes **kwargs.
        one = trainer(method, tmp_path, **settings)
        one.model_accepts_loss_kwargs = False
        one.train()
        found.append(numbers(one))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_what_is_reported_and_evaluated(tmp_path: Path) -> None:
    one = trainer("ntkmtl", tmp_path, logging_steps=1)
    one.train()
    reports = [report for report in one.state.log_history if "loss" in report]
    assert len(reports) == 8
    kinds = ("loss", "weight", "eigenvalue")
    assert {f"{k}/{task}" for k in kinds for task in tasks.TASKS} <= set(reports[0])
    predicted = one.predict(dataset())
    assert predicted.predictions.shape == (32, 2)
    assert predicted.metrics["test_loss"] > 0


@pytest.mark.parametrize("method", ["famo", "uw", "dwa"])
def test_methods_that_need_more_than_backward(method: str, tmp_path: Path) -> None:
    one = trainer(method, tmp_path, num_train_epochs=3)
    one.train()
    x, *labels = tasks.data()
    losses = tasks.mean_squares(one.accelerator.unwrap_model(one.model).net(x), labels)
    weights = one.balancer.backward(losses).weights
    assert len(set(weights.tolist())) == 2  # equal where nothing was learned


@pytest.mark.parametrize("method", ["ntkmtl-auto", "uw", "famo", "dwa"])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_resume(method: str, strategy: str, tmp_path: Path) -> None:
    # An epoch has 4 steps, so both save at its end, and "steps" before on_epoch_end.
    settings = {"lr_scheduler_type": "constant", "save_strategy": strategy, "save_steps": 4}
    whole = trainer(method, tmp_path / "whole", max_steps=12, **settings)
    whole.train()
    trainer(method, tmp_path / "parts", max_steps=8, **settings).train()
    resumed = trainer(method, tmp_path / "parts", max_steps=12, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(numbers(whole), numbers(resumed), strict=True))


def test_a_checkpoint_without_a_balancer_is_refused(tmp_path: Path) -> None:
    trainer(None, tmp_path, max_steps=4, save_strategy="steps", save_steps=4).train()
    with pytest.raises(FileNotFoundError, match="not written by a BalancedTrainer"):
        trainer("ntkmtl", tmp_path, max_steps=8).train(resume_from_checkpoint=True)


def test_errors(tmp_path: Path) -> None:
    class Sum(Model):
        def forward(self, x: Tensor, small: Tensor, large: Tensor, **_: Any) -> dict[str, Any]:
            return {"loss": super().forward(x, small, large)["loss"]}

    with pytest.raises(ValueError, match=r"'losses' .* found \['loss'\]"):
        trainer("ls", tmp_path, model=Sum()).train()
    with pytest.raises(TypeError, match=r"balancer must be an ntkmtl\.Balancer"):
        BalancedTrainer(Model(), TrainingArguments(str(tmp_path)), balancer="ntkmtl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compute_loss_func returns one loss"):
        BalancedTrainer(
            Model(),
            TrainingArguments(str(tmp_path), use_cpu=True),
            balancer=Balancer(),
            compute_loss_func=lambda *_: None,
        )


def test_an_optimizer_without_the_learned_parameters_is_refused(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)

    def made(learned: bool) -> Any:
        model, balancer = Model(), Balancer("uw", tasks=list(tasks.TASKS))
        parameters = [*model.parameters(), *(balancer.parameters() if learned else [])]
        optimizers = (torch.optim.SGD(parameters, lr=1e-4), None)
        return BalancedTrainer(
            model, arguments, train_dataset=dataset(), balancer=balancer, optimizers=optimizers
        )

    with pytest.raises(ValueError, match="given optimizer does not have its parameters"):
        made(learned=False).train()
    one = made(learned=True)
    (before,) = [p.clone() for p in one.balancer.parameters()]
    one.train()
    (after,) = one.balancer.parameters()
    assert not torch.equal(before, after)


def test_a_new_model_gets_a_new_balance(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=1e-2,
        num_train_epochs=3,
    )
    one = BalancedTrainer(
        model_init=lambda: tasks.seeded(Model),
        args=arguments,
        train_dataset=dataset(),
        balancer=Balancer("dwa", tasks=list(tasks.TASKS)),
    )
    found = []
    for _ in range(2):  # as hyperparameter_search does
        one.train()
        found.append(numbers(one))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_changes_of_the_sum_are_refused(tmp_path: Path) -> None:
    class Term(Model):
        # By name: the Trainer drops the columns that the signature does not name.
        def forward(self, x: Tensor, small: Tensor, large: Tensor, **kwargs: Any) -> dict[str, Any]:
            outputs = super().forward(x, small, large, **kwargs)
            return {**outputs, "loss": outputs["loss"] + 1e4}

    with pytest.raises(ValueError, match=r"where the sum of outputs\['losses'\] is"):
        trainer("ls", tmp_path, model=Term()).train()

    class Added(BalancedTrainer):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(model, *args, **kwargs)
            return found + sum(p.square().sum() for p in model.parameters())

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    one = Added(Model(), arguments, train_dataset=dataset(), balancer=Balancer("ls"))
    with pytest.raises(ValueError, match="is not the sum of the losses that was kept"):
        one.train()


@pytest.mark.parametrize(("precision", "share"), [({}, 2e-3), ({"bf16": True}, 0.1)])
def test_a_term_that_comes_later_is_refused(
    precision: dict[str, Any], share: float, tmp_path: Path
) -> None:
    class Later(Model):
        calls = 0

        def forward(self, x: Tensor, small: Tensor, large: Tensor, **kwargs: Any) -> dict[str, Any]:
            outputs = super().forward(x, small, large, **kwargs)
            self.calls += 1
            factor = 1.0 if self.calls < 4 else 1 + share
            return {**outputs, "loss": factor * outputs["loss"]}

    model = Later()
    with pytest.raises(ValueError, match=r"where the sum of outputs\['losses'\] is"):
        trainer("ls", tmp_path, model=model, **precision).train()
    assert model.calls == 4


def test_losses_that_nearly_cancel_have_a_sum(tmp_path: Path) -> None:
    class Opposed(Model):
        def forward(self, x: Tensor, small: Tensor, large: Tensor, **kwargs: Any) -> dict[str, Any]:
            outputs = super().forward(x, small, large, **kwargs)
            losses = {"small": outputs["losses"]["large"] + 1e-3}
            losses["large"] = -outputs["losses"]["large"]
            # The same sum in another order of operations.
            return {**outputs, "loss": 0.0 * losses["small"] + 1e-3, "losses": losses}

    trainer("ls", tmp_path, model=Opposed(), max_steps=2).train()


def train_in_two(rank: int, folder: Path, method: str, unused: bool) -> None:
    one = trainer(
        method,
        folder / "out",
        per_device_train_batch_size=4,
        ddp_backend="gloo",
        ddp_find_unused_parameters=unused,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
    )
    one.train()
    assert one.args.world_size == 2
    torch.save(numbers(one), folder / f"{rank}.pt")


@pytest.mark.integration
@pytest.mark.parametrize(("method", "unused"), [("ls", True), ("ntkmtl-auto", False)])
def test_two_processes(method: str, unused: bool, tmp_path: Path) -> None:
    tasks.launch(train_in_two, tmp_path, method, unused)
    first, second = tasks.both(tmp_path)
    torch.testing.assert_close(first, second)
    if method == "ls":
        plain = trainer(
            None, tmp_path / "plain", max_grad_norm=0.0, train_sampling_strategy="sequential"
        )
        plain.model_accepts_loss_kwargs = False
        plain.train()
        torch.testing.assert_close(first, numbers(plain), rtol=1e-4, atol=1e-6)
