"""Search: the same search for the settings of every method, by Optuna.

* :func:`tune` searches all methods with equally many trials, then trains the best settings.
* :func:`search_settings` does the search alone.
* :func:`parameters_of` says what is searched of a method.
* :func:`read_tuning` reads what a search found; it needs neither torch nor Optuna.

The names are loaded on first use, so that reading does not import torch.

Example:
    >>> from ntkmtl.bench import search, training
    >>> from ntkmtl.bench.training.baselines import BaselineCache
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import pandas as pd
    >>> folder = Path(mkdtemp())
    >>> table = pd.DataFrame({"age": range(60), "rooms": [i % 7 for i in range(60)]})
    >>> table["price"], table["rent"] = 3 * table["rooms"] - table["age"] / 9, 2.0 * table["rooms"]
    >>> table.to_csv(folder / "houses.csv", index=False)
    >>> comparison = training.Comparison(
    ...     problem="table",
    ...     problem_options={"csv": str(folder / "houses.csv"), "targets": "price,rent"},
    ...     methods=("si",),
    ...     seeds=(0,),
    ...     epochs=1,
    ...     single_task_baselines=False,
    ...     jobs=1,
    ...     out=folder / "runs",
    ... )
    >>> asked = search.Search(comparison, trials=2)
    >>> cache = BaselineCache(folder / "cache")
    >>> sweep, found = search.search_settings(asked, cache=cache)
    >>> found["si"].trials
    2
    >>> search.tune(asked, cache=cache).failures  # trials are there; the final run is trained
    ()
    >>> method = next(folder.rglob("best.json")).parents[1]
    >>> search.read_tuning(method).parameters == found["si"].parameters
    True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkmtl.loading import on_first_use

if TYPE_CHECKING:
    from ntkmtl.bench.search.records import Parameter, Trial, Tuning, parameters_of, read_tuning
    from ntkmtl.bench.search.tuning import Search, search_settings, tune

__all__ = [
    "Parameter",
    "Search",
    "Trial",
    "Tuning",
    "parameters_of",
    "read_tuning",
    "search_settings",
    "tune",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        ".records": ("Parameter", "Trial", "Tuning", "parameters_of", "read_tuning"),
        ".tuning": ("Search", "search_settings", "tune"),
    },
)
