"""
Molecules: QM9
==============

Eleven properties of 4,000 real molecules, which come with the package. This is the comparison of
``make compare`` at a tenth of its length: one seed and six epochs.
"""

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch

from ntkmtl.analysis import imbalance
from ntkmtl.bench import training

folder = Path(mkdtemp())
training.compare(
    training.Comparison(
        problem="qm9-mini",
        methods=("ls", "si", "ntkmtl-sr", "ntkmtl-auto"),
        seeds=(0,),
        out=folder,
        epochs=6,
        single_task_baselines=False,
        jobs=1,
    )
)
complete, _ = training.load_runs(folder)
runs = {run.config.method: run for run in complete}
plain = runs["ls"]

# %%
# Test errors relative to those of the plain sum: below 1 is better.

names = [metric.name for metric in plain.config.metrics]
figure, axis = plt.subplots(figsize=(9, 3.4))
for offset, (method, run) in enumerate(runs.items()):
    ratio = [a / b for a, b in zip(run.result.test, plain.result.test, strict=True)]
    axis.bar([i + 0.2 * offset - 0.3 for i in range(len(names))], ratio, 0.2, label=method)
axis.axhline(1, color="black", linewidth=0.6)
axis.set_xticks(range(len(names)), names)
axis.set_ylabel("test error / that of ls")
axis.legend(ncols=4)
figure.tight_layout()

# %%
# The largest eigenvalue of each task under ``ntkmtl-sr``: the plain sum starves the tasks with
# small ones.

steps = runs["ntkmtl-sr"].steps
figure, axis = plt.subplots(figsize=(9, 3.4))
for i, task in enumerate(runs["ntkmtl-sr"].config.tasks):
    axis.semilogy(steps.step, steps.eigenvalues[:, i], label=task, color=plt.cm.tab20(i))
axis.set(xlabel="step", ylabel="largest eigenvalue")
axis.legend(ncols=6, fontsize="small")
figure.tight_layout()
print("largest / smallest at the end:", round(imbalance(torch.tensor(steps.eigenvalues[-1])), 1))
