"""Two losses with Keras: ``python examples/frameworks/keras_two_losses.py``."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before the first import of Keras

import keras
import numpy as np

from ntkmtl import Balancer
from ntkmtl.integrations.keras import BalancedModel

keras.utils.set_random_seed(0)
inputs = keras.Input((6,))
z = keras.layers.Dense(32, activation="relu")(inputs)
z = keras.layers.Dense(16, activation="relu")(z)
outputs = {name: keras.layers.Dense(1, name=name)(z) for name in ("small", "large")}
model = BalancedModel(inputs, outputs)  # plain training: keras.Model
model.compile(
    keras.optimizers.Adam(1e-2),
    loss={"small": "mse", "large": "mse"},
    balancer=Balancer(),
)

x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
labels = {"small": np.tanh(x[:, :1]), "large": 100 * x[:, 1:2] * x[:, 2:3]}
model.fit(x, labels, batch_size=16, epochs=10, verbose=2)
