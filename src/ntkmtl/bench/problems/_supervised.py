"""What several supervised problems share."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ntkmtl.bench.problems.base import MultiTaskModel, Problem, Recipe, Split
from ntkmtl.files import parse_json, read_bytes

SPLITS: tuple[Split, ...] = ("train", "val", "test")

_Item = TypeVar("_Item")


def chosen_recipe(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """Return a recipe by name.

    Example:
        >>> chosen_recipe({"small": Recipe(1, 2, 0.1)}, "large")
        Traceback (most recent call last):
        ...
        ValueError: recipe must be one of small. Found recipe='large'.
    """
    if name not in recipes:
        raise ValueError(f"recipe must be one of {', '.join(recipes)}. Found recipe={name!r}.")
    return recipes[name]


def positions(known: Sequence[str], asked: Sequence[str] | None) -> list[int]:
    """Return the positions of tasks among all tasks, those of all if None are asked for.

    Raises:
        ValueError: A task is unknown or named twice, or none is named.

    Example:
        >>> positions(("a", "b", "c"), ["c", "a"])
        [2, 0]
    """
    if asked is None:
        return list(range(len(known)))
    unknown = [task for task in asked if task not in known]
    if unknown:
        raise ValueError(
            f"no task is named {', '.join(map(repr, unknown))}. Known: {', '.join(known)}"
        )
    if len(set(asked)) != len(asked) or not asked:
        raise ValueError(f"tasks must be named once each, at least one. Found {list(asked)}.")
    return [known.index(task) for task in asked]


def paired(
    known: Sequence[str], outputs: Sequence[_Item], asked: Sequence[str] | None
) -> list[tuple[int, _Item]]:
    """Return each head's output behind the position of its task; see :func:`positions`.

    Raises:
        ValueError: A task is unknown, or there are not as many outputs as tasks.
    """
    places = positions(known, asked)
    one_output_per_task(outputs, places)
    return list(zip(places, outputs, strict=True))


def refuse_unfit(problem: Problem) -> None:
    """Build the network without memory, so that settings that do not fit are refused at once."""
    with torch.device("meta"):
        problem.model()


def one_output_per_task(outputs: Sequence[_Item], tasks: Sequence[int]) -> None:
    """Refuse a network without exactly one head per task."""
    if len(outputs) != len(tasks):
        raise ValueError(f"{len(outputs)} outputs for {len(tasks)} tasks")


@contextmanager
def evaluating(model: MultiTaskModel) -> Iterator[None]:
    """Put a network into evaluation mode without gradients, and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def moved(batch: Any, model: MultiTaskModel) -> Any:
    """Return a batch on the device of a network: a tensor, or a tuple of such things, or of None.

    Problems make batches on the CPU, where their data are. Tensors on the right device are not
    copied.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, device="meta")
        >>> [x.device.type for x in moved((torch.zeros(3, 2), torch.zeros(3)), model)]
        ['meta', 'meta']
    """
    parameter = next(model.parameters(), None)
    return batch if parameter is None else _on(batch, parameter.device)


def _on(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple):
        parts = [_on(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch


def shuffled(label: str, numbers: Iterable[int]) -> Tensor:
    """Return a random order of samples that depends on their numbers alone.

    A sample comes before another whatever other samples there are: they are ordered by the SHA-256
    of ``"LABEL NUMBER"``.

    Args:
        label: A string that no other problem uses.
        numbers: One per sample.

    Returns:
        Positions, int64 of shape (samples,).

    Example:
        >>> shuffled("faces", [1, 2, 3]).tolist()  # 2, 3, 1
        [1, 2, 0]
        >>> shuffled("faces", [1, 3]).tolist()  # 3, 1
        [1, 0]
    """
    keys = [hashlib.sha256(f"{label} {number}".encode()).digest() for number in numbers]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))


def enough(
    recipe: str,
    needed: int,
    found: int,
    samples: str,
    folder: Path,
    how: str,
    least: int | None = None,
) -> None:
    """Refuse prepared data of which a recipe takes more samples than there are.

    If ``least`` is given, that many are enough, for splits in the same proportions. ``how`` says
    how a user gets more.
    """
    if found < (needed if least is None else least):
        below = "" if least is None else f", fewer than the {least} that it needs"
        raise ValueError(
            f"the recipe {recipe} takes {needed:,} {samples}, and {folder} holds {found:,}{below}. "
            f"{how}"
        )


LEAST = 20
"""Samples that a small set must have: a test on fewer says nothing."""


def shares(found: int, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return sizes of splits: those wanted, or shares of what is there in the same proportions.

    Example:
        >>> shares(5_000, (800, 400, 2_800)), shares(40, (800, 400, 2_800))
        ((800, 400, 2800), (8, 4, 28))
    """
    total = sum(wanted)
    if found >= total:
        return tuple(wanted)
    sizes = [max(1, found * size // total) for size in wanted[:-1]]
    return (*sizes, found - sum(sizes))


def fewer(wanted: int, sizes: Sequence[int], samples: str) -> str:
    """Return a sentence on a recipe that is used on fewer samples than it takes.

    Example:
        >>> fewer(4_000, (28, 4, 8), "images")
        'Only 40 of 4,000 images are there: 28 for training, 4 for validation, 8 for testing.'
    """
    train, val, test = sizes
    return (
        f"Only {sum(sizes):,} of {wanted:,} {samples} are there: {train:,} for training, {val:,} "
        f"for validation, {test:,} for testing."
    )


def fitted(recipe: Recipe, training: int, shrunk: str = "") -> Recipe:
    """Return a recipe whose batches are no larger than the training split, and that says so.

    Example:
        >>> recipe = fitted(Recipe(1, 64, 0.1, minibatches=4, description="Small."), 12)
        >>> recipe.batch_size, recipe.minibatches, recipe.description
        (12, 4, 'Small. Batches of 12 instead of 64, as there are no more training samples.')
    """
    size = min(recipe.batch_size, training)
    if size < recipe.batch_size:
        shrunk += (
            f" Batches of {size} instead of {recipe.batch_size}, as there are no more training "
            "samples."
        )
    if not shrunk:
        return recipe
    return replace(
        recipe,
        batch_size=size,
        minibatches=min(recipe.minibatches, size),
        reduced=True,
        description=f"{recipe.description} {shrunk.strip()}".strip(),
    )


# ------------------------------------------------------------------------------------------------
# Training, validation and test lists of the user

_FORM = 'JSON {"train": [...], "val": [...], "test": [...]}, or CSV with the columns id and split'


class CustomSplit(NamedTuple):
    """Lists of a file, as rows of the data.

    Attributes:
        rows: Rising rows by split, int64.
        name: Name of the file, without its folder.
        digest: SHA-256 of the rows; equal lists have equal ones, in whatever order they are.
    """

    rows: dict[Split, Tensor]
    name: str
    digest: str

    @property
    def said(self) -> str:
        """The split in a run's identity."""
        return f"custom, SHA-256 {self.digest}"

    def sizes(self, samples: str) -> str:
        """Return a sentence on the lists."""
        train, val, test = (len(self.rows[split]) for split in SPLITS)
        return (
            f"Split by {self.name}: {train:,} {samples} for training, {val:,} for validation, "
            f"{test:,} for testing; numbers are not those of the usual split."
        )


def custom_split(path: object, known: Mapping[str, int], samples: str, example: str) -> CustomSplit:
    """Read the lists of a file.

    Args:
        path: The file. ``.json``: ``{"train": [...], "val": [...], "test": [...]}``, names or
            numbers of samples in each. ``.csv``: a name or number and ``train``, ``val`` or
            ``test`` in each line, after a line with ``id,split``.
        known: Row of each sample by what a list may call it.
        samples: What the samples are called, as ``"images"``.
        example: What names of samples look like, for errors.

    Raises:
        ValueError: The file is of another form, or a list is missing, empty, names a sample that
            is not there, names one twice, or one that another list names too.
        OSError: The file cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "lists.json"
        >>> _ = file.write_text('{"train": ["a", "b"], "val": ["c"], "test": ["d"]}')
        >>> known = {"a": 0, "b": 1, "c": 2, "d": 3}
        >>> custom_split(file, known, "samples", "a").rows["train"].tolist()
        [0, 1]
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ValueError(f"split must be the name of a file, found {path!r}")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"split={path} is not there")
    content = read_bytes(path)
    if path.suffix not in (".json", ".csv"):
        raise ValueError(f"split={path} must end in .json or .csv: {_FORM}")
    try:
        named = _of_json(content) if path.suffix == ".json" else _of_csv(content)
        rows = _rows(named, known, samples, example)
    except ValueError as error:
        raise ValueError(f"split={path}: {error}") from error
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split} {rows[split].tolist()}\n".encode())
    return CustomSplit(rows, path.name, digest.hexdigest())


def _of_json(content: bytes) -> dict[Split, list[str]]:
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"the file must be {_FORM}, found a {type(value).__name__}")
    others = [key for key in value if key not in SPLITS]
    if others:
        raise ValueError(f"the lists are train, val and test, found {others[0]!r}")
    found: dict[Split, list[str]] = {}
    for split in SPLITS:
        listed = value.get(split, [])
        if not isinstance(listed, list):
            raise ValueError(f"{split} must be a list, found a {type(listed).__name__}")
        found[split] = [_name(split, entry) for entry in listed]
    return found


def _name(split: Split, entry: Any) -> str:
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        raise ValueError(f"{split} must hold names or whole numbers, found {entry!r}")
    return str(entry).strip()


def _of_csv(content: bytes) -> dict[Split, list[str]]:
    found: dict[Split, list[str]] = {split: [] for split in SPLITS}
    lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    try:
        for number, cells in enumerate(lines, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != 2:
                raise ValueError(f"line {number} must have two columns, found {len(cells)}")
            name, split = cells[0].strip(), cells[1].strip()
            if split not in found:
                if number == 1 and split == "split":
                    continue
                raise ValueError(
                    f"line {number} must end in train, val or test, found {cells[1]!r}"
                )
            found[split].append(name)
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error
    return found


def _rows(
    named: Mapping[Split, Iterable[str]], known: Mapping[str, int], samples: str, example: str
) -> dict[Split, Tensor]:
    owner: dict[int, tuple[Split, str]] = {}
    rows: dict[Split, Tensor] = {}
    for split in SPLITS:
        names = list(named[split])
        if not names:
            raise ValueError(f"the list {split} is empty or missing; it must name {samples}")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"{split} names {unknown[0]!r}, which is not among the {samples} that are there "
                f"({len(unknown):,} such names); {example}"
            )
        for name in names:
            row = known[name]
            if row in owner:
                raise ValueError(
                    f"{split} names {name!r}, which {owner[row][0]} names already, as "
                    f"{owner[row][1]!r}: each of the {samples} may be named once only"
                )
            owner[row] = split, name
        rows[split] = torch.tensor(sorted(known[name] for name in names), dtype=torch.int64)
    return rows


# ------------------------------------------------------------------------------------------------
# Problems


class RowsProblem(Problem):
    """A problem whose splits are rows of prepared data."""

    _rows: dict[Split, Tensor]
    _split_said: Any = None
    """What the split is called in a run's identity."""
    _sizes_said: str = ""
    """A sentence on splits that are not those of the recipe, "" where they are."""
    _accepted: str = ""
    """A sentence on values that were accepted as implausible, "" where there are none."""

    def _use_lists(
        self, path: object, known: Mapping[str, int], samples: str, example: str
    ) -> None:
        """Take the splits from a file of the user; arguments are those of :func:`custom_split`."""
        custom = custom_split(path, known, samples, example)
        self._rows, self._split_said = custom.rows, custom.said
        self._sizes_said = custom.sizes(samples)

    def _share_out(self, order: Tensor, wanted: Sequence[int], samples: str) -> dict[Split, Tensor]:
        """Split samples in this order: so many for testing, validation and training, see shares."""
        sizes = shares(len(order), wanted)
        if len(order) < sum(wanted):
            self._sizes_said = fewer(sum(wanted), sizes[::-1], samples)
        test, val, train = order[: sum(sizes)].split(list(sizes))
        return {"test": test, "val": val, "train": train}

    def notice(self) -> str:
        """Say where splits are not those of the recipe, or values were accepted as implausible."""
        return f"{self._accepted} {self._sizes_said}".strip()

    def size(self, split: Split) -> int:
        """Return the number of samples in a split."""
        return len(self._rows[split])

    def batch(self, split: Split, indices: Tensor) -> Any:
        """Return the samples of a split at ``indices`` as one batch."""
        return self._take(self._rows[split][indices])

    @abstractmethod
    def _take(self, rows: Tensor) -> Any:
        """Return the samples at these rows of the data as one batch."""


class ColumnsProblem(RowsProblem):
    """A problem with one label and one output per task and sample: a column of labels each."""

    @staticmethod
    @abstractmethod
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        """Return a task's loss, a scalar, of its outputs and labels of shape (b,)."""

    @staticmethod
    @abstractmethod
    def labels(batch: Any) -> Tensor:
        """Return the labels of a batch, shape (b, k)."""

    def losses(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return the loss of each task."""
        labels = self.labels(batch).unbind(dim=1)
        return {
            self.tasks[column]: self.loss(output, labels[column])
            for column, output in paired(self.tasks, outputs, tasks)
        }

    def _predicted(
        self, model: MultiTaskModel, rows: Tensor, size: int, tasks: Sequence[str] | None
    ) -> tuple[list[int], list[Tensor]]:
        """Return what a network says, in the order of metrics, which is that of all tasks.

        Returns:
            The columns of the tasks, and for each batch its outputs on the CPU, shape (b, k).
        """
        columns = positions(self.tasks, tasks)
        order = sorted(range(len(columns)), key=columns.__getitem__)
        found = []
        with evaluating(model):
            for some in rows.split(size):
                outputs = model.predict(model.represent(moved(self._take(some), model)))
                one_output_per_task(outputs, columns)
                found.append(torch.stack([outputs[place] for place in order], dim=1).cpu())
        return [columns[place] for place in order], found
