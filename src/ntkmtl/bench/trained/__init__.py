"""Trained networks of finished runs: loading, predicting, exporting.

Example:
    >>> from ntkmtl.bench import load, problems
    >>> from ntkmtl.bench.training import changed_recipe, train
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> problem = problems.create("qm9-mini")
    >>> run = train(problem, "ls", 0, folder, recipe=changed_recipe(problem.recipe, epochs=1))
    >>> network = load(folder)
    >>> network.predict("test")["mu"].values.shape
    torch.Size([500])
    >>> network.metrics("test")["mu"] == run.result.test[0]
    True
"""

from __future__ import annotations

from ntkmtl.bench.trained._model import TrainedModel, load
from ntkmtl.bench.trained._output import columns_of, csv_text, write_arrays

__all__ = ["TrainedModel", "columns_of", "csv_text", "load", "write_arrays"]
