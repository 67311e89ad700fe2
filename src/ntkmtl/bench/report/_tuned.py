"""Whether the runs of a method have the settings that a search found."""

from __future__ import annotations

from collections.abc import Sequence

from ntkmtl.bench.runs import Run
from ntkmtl.bench.search.records import Tuning, read_tuning


def tuning_of(group: Sequence[Run]) -> Tuning | None:
    """Return the search that found the settings of all these runs of one method.

    Raises:
        RunFileError: Its file is damaged.
    """
    found = read_tuning(group[0].path.parent)
    if found is None:
        return None
    wanted = dict(found.method_options), dict(found.recipe)
    for run in group:
        recipe = {key: run.config.recipe.get(key) for key in found.recipe}
        if (dict(run.config.method_options), recipe) != wanted:
            return None
    return found
