"""
A table
=======

A CSV file and three columns to predict: two numbers and a class, some of them missing. No training
loop is needed; the same comparison on the command line is

.. code-block:: console

   ntkmtl compare table --csv houses.csv --targets price,rooms,kind --methods ls,si,ntkmtl-sr
"""

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ntkmtl.bench import report, training

folder = Path(mkdtemp())
random = np.random.default_rng(0)
area, age, center = (
    random.uniform(30, 200, 900),
    random.uniform(0, 90, 900),
    random.uniform(0, 20, 900),
)
rooms = np.maximum(1, np.round(area / 28 + random.normal(0, 0.6, 900)))
price = 3000 * area * np.exp(-center / 12) * (1 - age / 300) + random.normal(0, 20000, 900)
kind = np.where(area + 6 * center + random.normal(0, 15, 900) > 190, "house", "flat")
table = pd.DataFrame(
    {"area": area.round(1), "age": age.round(), "center_km": center.round(1), "rooms": rooms}
)
table["price"] = np.where(random.random(900) < 0.2, np.nan, price.round())
table["kind"] = kind
table.to_csv(folder / "houses.csv", index=False)
print(table.head())

# %%
# Train three methods, and one network for each column alone (``stl``), with two seeds each, and
# print the table of the test split. Δm is the mean change against ``stl``: below 0 is better. The
# type of a column follows from its values, missing prices are left out of the loss, and numbers are
# standardized.

comparison = training.Comparison(
    problem="table",
    problem_options={"csv": str(folder / "houses.csv"), "targets": "price,rooms,kind"},
    methods=("ls", "si", "ntkmtl-sr"),
    seeds=(0, 1),
    out=folder / "runs",
    epochs=15,
    jobs=1,
)
training.compare(comparison)
report.print_table(report.build_table(folder / "runs"))

# %%
# All three methods are close to ``stl`` and to each other: standardized columns have losses of
# similar size, so there is little to balance, and the plain sum will do. The training losses of
# seed 0, by task, say the same:

complete, _ = training.load_runs(folder / "runs")
runs = [run for run in complete if run.config.method != "stl" and run.config.seed == 0]
figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for i, axis in enumerate(axes):
    for run in runs:
        axis.semilogy([epoch.train_losses[i] for epoch in run.history], label=run.config.method)
    axis.set(title=runs[0].config.tasks[i], xlabel="epoch")
axes[0].legend()
figure.tight_layout()
