"""``ntkmtl.integrations.keras`` against plain training with Keras."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import framework_tasks as tasks
from ntkmtl import Balancer
from ntkmtl.errors import NonFiniteError
from ntkmtl.integrations.keras import BalancedModel


def arrays() -> tuple[Any, dict[str, Any]]:
    x, *labels = (part.numpy() for part in tasks.data())
    return x, dict(zip(tasks.TASKS, labels, strict=True))


def model(kind: Any = BalancedModel, activation: str = "tanh", **layer: Any) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    z = keras.layers.Dense(8, activation=activation, **layer)(inputs)
    heads = {name: keras.layers.Dense(1, name=name, dtype="float32")(z) for name in tasks.TASKS}
    return kind(inputs, heads)


def compiled(method: str | None = None, optimizer: Any = None, **kwargs: Any) -> Any:
    kind = keras.Model if method is None else BalancedModel
    one = model(kind, **kwargs)
    optimizer = optimizer or keras.optimizers.Adam(1e-2)
    options = {} if method is None else {"balancer": Balancer(method, tasks=list(tasks.TASKS))}
    one.compile(optimizer, loss=dict.fromkeys(tasks.TASKS, "mse"), **options)
    return one


def fit(one: Any, epochs: int = 2, **kwargs: Any) -> dict[str, Any]:
    x, y = arrays()
    settings = {"batch_size": 8, "verbose": 0, "shuffle": False, **kwargs}
    history: dict[str, Any] = one.fit(x, y, epochs=epochs, **settings).history
    return history


def assert_same(a: Any, b: Any) -> None:
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "clipnorm": 1.0}])
def test_ls_is_plain_training(settings: dict[str, Any]) -> None:
    pair = [compiled(m, keras.optimizers.Adam(1e-2, **settings)) for m in ("ls", None)]
    histories = [fit(one) for one in pair]
    assert_same(*pair)
    for name in ("loss", "small_loss", "large_loss"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        pair = [compiled(m) for m in ("ls", None)]
        for one in pair:
            fit(one)
    finally:
        keras.config.set_dtype_policy("float32")
    scaled = hasattr(pair[0].optimizer, "dynamic_scale")
    assert scaled == (policy == "mixed_float16")
    for one, other in zip(pair[0].get_weights(), pair[1].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-3)


def test_regularizers_are_added_outside_the_balance() -> None:
    pair = [compiled(m, kernel_regularizer="l2") for m in ("ls", None)]
    for one in pair:
        fit(one)
    assert_same(*pair)


def test_what_is_logged() -> None:
    history = fit(compiled("ntkmtl"), validation_data=arrays())
    kinds = ("weight", "eigenvalue")
    assert {f"{k}/{task}" for k in kinds for task in tasks.TASKS} <= set(history)
    ratio = history["eigenvalue/large"][-1] / history["eigenvalue/small"][-1]
    found = history["weight/small"][-1] / history["weight/large"][-1]
    assert found == pytest.approx(ratio**0.5, rel=1e-5)  # Eq. 15


@pytest.mark.parametrize("method", ["famo", "dwa"])
def test_methods_that_need_more_than_backward(method: str) -> None:
    one = compiled(method)
    history = fit(one, epochs=4, callbacks=keras.callbacks.CSVLogger("/dev/null"))
    assert history["weight/small"][-1] != history["weight/large"][-1]


def test_a_method_that_learns_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="learns weights by an optimizer of PyTorch"):
        compiled("uw")


@pytest.mark.parametrize("method", ["ntkmtl-auto", "famo"])
def test_resume(method: str, tmp_path: Path) -> None:
    whole = compiled(method)
    fit(whole, epochs=4)
    first = compiled(method)
    fit(first, epochs=2)
    first.save_weights(tmp_path / "a.weights.h5")
    second = compiled(method)
    fit(second, epochs=1)  # builds the optimizer, whose state is then loaded
    second.load_weights(tmp_path / "a.weights.h5")
    fit(second, epochs=2)
    assert all(
        np.array_equal(a, b) for a, b in zip(whole.get_weights(), second.get_weights(), strict=True)
    )


def test_a_backup_holds_the_end_of_its_epoch(tmp_path: Path) -> None:
    def trained(epochs: int, folder: str) -> Any:
        one = compiled("dwa")
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder, delete_checkpoint=False)
        fit(one, epochs=epochs, callbacks=[backup])
        return one

    whole = trained(4, "whole")
    trained(2, "parts")
    resumed = trained(4, "parts")
    assert all(
        np.array_equal(a, b)
        for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True)
    )


def test_a_list_of_callbacks_used_twice_ends_each_epoch_once() -> None:
    one = compiled("dwa")
    ended: list[int] = []
    one.balancer.weighting.end_epoch = lambda: ended.append(0)
    callbacks = keras.callbacks.CallbackList([], add_history=True, model=one)
    for _ in range(2):
        fit(one, epochs=1, callbacks=callbacks)
    assert len(ended) == 2


def test_accumulated_batches_are_no_steps_of_a_method() -> None:
    """``famo`` learns from the losses before and after an update."""
    one = compiled("famo", keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2))
    told: list[int] = []
    one.balancer.weighting.after_step = lambda *_: told.append(int(one.optimizer.iterations))
    fit(one, epochs=1)
    assert told == [1, 2]


def test_a_step_that_the_optimizer_skips_is_no_step_of_a_method() -> None:
    adam = keras.optimizers.Adam(1e-2)
    one = compiled("famo", keras.optimizers.LossScaleOptimizer(adam, initial_scale=3.3e38))
    told: list[int] = []
    one.balancer.weighting.after_step = lambda *_: told.append(0)
    fit(one)
    assert 0 < len(told) == int(adam.iterations) < 8


def test_what_was_accumulated_outlasts_a_batch_without_a_label() -> None:
    labeled = {"small": np.ones(32), "large": np.repeat([1.0, 0.0, 1.0, 0.0], 8)}
    pair = [
        compiled(method, keras.optimizers.SGD(1e-4, gradient_accumulation_steps=2))
        for method in ("ls", None)
    ]
    for one in pair:
        fit(one, sample_weight=labeled)
    assert_same(*pair)


def test_a_fixed_loss_scale() -> None:
    pair = [
        compiled("si", keras.optimizers.Adam(1e-2, loss_scale_factor=factor))
        for factor in (8.0, None)
    ]
    for one in pair:
        fit(one)
    assert_same(*pair)
    x, y = arrays()
    y["large"] = y["large"].copy()
    y["large"][3] = np.nan  # nothing skips such a step: it would end the training in silence
    with pytest.raises(NonFiniteError, match="task large is nan"):
        pair[0].fit(x, y, verbose=0)


def test_a_saved_model_predicts_without_a_balancer(tmp_path: Path) -> None:
    one = compiled("ntkmtl")
    fit(one)
    one.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    x, _ = arrays()
    for name in tasks.TASKS:
        np.testing.assert_array_equal(
            loaded.predict(x, verbose=0)[name], one.predict(x, verbose=0)[name]
        )
    with pytest.raises(ValueError, match=r"You must call `compile\(\)`"):  # not the plain sum
        fit(loaded)


def test_weights_without_a_balancer_are_refused(tmp_path: Path) -> None:
    plain = compiled(None)
    plain.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="holds no state of a Balancer"):
        compiled("ntkmtl").load_weights(tmp_path / "a.weights.h5")


def test_sample_weights_of_0_are_no_labels() -> None:
    one = compiled("ls")
    before = [v.numpy() for v in one.get_layer("large").variables]
    ones, zeros = np.ones(32), np.zeros(32)
    fit(one, sample_weight={"small": ones, "large": zeros})
    assert all(
        np.array_equal(a, v.numpy())
        for a, v in zip(before, one.get_layer("large").variables, strict=True)
    )


def test_a_batch_without_any_label_is_left_out() -> None:
    one = compiled("ls")
    before = one.get_weights()
    fit(one, sample_weight=dict.fromkeys(tasks.TASKS, np.zeros(32)))
    assert all(np.array_equal(a, b) for a, b in zip(before, one.get_weights(), strict=True))


def test_an_output_with_no_loss_is_no_task() -> None:
    pair = [model(kind) for kind in (BalancedModel, keras.Model)]
    for one, options in zip(pair, ({"balancer": Balancer("ls")}, {}), strict=True):
        one.compile(keras.optimizers.Adam(1e-2), loss={"small": "mse", "large": None}, **options)
        fit(one)
    assert_same(*pair)


def test_a_compute_loss_that_would_be_ignored_is_refused() -> None:
    class Own(BalancedModel):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(*args, **kwargs)

    with pytest.raises(TypeError, match=r"Own\.compute_loss returns one loss"):
        model(Own).compile("adam", loss=dict.fromkeys(tasks.TASKS, "mse"), balancer=Balancer())


def test_a_frozen_trunk_has_nothing_to_balance() -> None:
    one = model()
    one.layers[1].trainable = False
    one.compile("adam", loss=dict.fromkeys(tasks.TASKS, "mse"), balancer=Balancer())
    with pytest.warns(UserWarning, match="share"):
        history = fit(one)
    assert history["weight/small"] == history["weight/large"] == [1.0, 1.0]


def test_labels_without_their_last_dimension() -> None:
    x, y = arrays()
    flat = {name: values[:, 0] for name, values in y.items()}
    a, b = compiled("ls"), compiled("ls")
    a.fit(x, y, verbose=0, shuffle=False)
    b.fit(x, flat, verbose=0, shuffle=False)
    assert_same(a, b)


def test_errors() -> None:
    one = model()
    loss = dict.fromkeys(tasks.TASKS, "mse")
    with pytest.raises(ValueError, match="loss_weights would be balanced away"):
        one.compile("adam", loss=loss, balancer=Balancer(), loss_weights={"small": 2.0})
    with pytest.raises(TypeError, match="loss must be a dict"):
        one.compile("adam", loss="mse", balancer=Balancer())
    with pytest.raises(TypeError, match=r"balancer must be an ntkmtl\.Balancer"):
        one.compile("adam", loss=loss, balancer="ntkmtl")
    one.compile("adam", loss=loss, balancer=Balancer())
    with pytest.raises(TypeError, match="y must be a dict with"):
        one.train_step((torch.zeros(4, 6), torch.zeros(4, 1)))


def test_losses_as_the_second_argument() -> None:
    pair = [model(), model()]
    loss = dict.fromkeys(tasks.TASKS, "mse")
    pair[0].compile("adam", loss, balancer=Balancer("ls"))
    pair[1].compile(optimizer="adam", loss=loss, balancer=Balancer("ls"))
    for one in pair:
        fit(one)
    assert_same(*pair)
    with pytest.raises(ValueError, match="loss_weights would be balanced away"):
        pair[0].compile("adam", loss, {"small": 2.0}, balancer=Balancer())


SUBCLASS = """
import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from ntkmtl import Balancer
from ntkmtl.integrations.keras import BalancedModel


class Own(BalancedModel):
    def __init__(self):
        super().__init__()
        self.heads = {name: keras.layers.Dense(1, name=name) for name in ("a", "b")}

    def call(self, x):
        return {name: head(x) for name, head in self.heads.items()}


inputs = keras.Input((3,))
made = BalancedModel(inputs, {"a": keras.layers.Dense(1, name="a")(inputs)})
assert isinstance(made, BalancedModel)
one, x, y = Own(), torch.ones(8, 3), torch.ones(8, 1)
one.compile("adam", loss={"a": "mse", "b": "mse"}, balancer=Balancer("ls"))
print(one.fit(x, {"a": y, "b": y}, verbose=0).history)
"""


@pytest.mark.integration
def test_a_subclass_with_a_call_after_a_model_of_inputs_and_outputs() -> None:
    done = subprocess.run(  # in a process of its own, as Keras changes classes for good
        [sys.executable, "-c", SUBCLASS], capture_output=True, text=True, check=False
    )
    assert "weight/b" in done.stdout, done.stderr


@pytest.mark.integration
def test_another_backend_is_an_error() -> None:
    code = "import os; os.environ['KERAS_BACKEND'] = 'numpy'; import ntkmtl.integrations.keras"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "set KERAS_BACKEND=torch" in done.stderr
