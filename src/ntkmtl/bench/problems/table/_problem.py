"""The problem ``table``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.architectures import choose
from ntkmtl.bench.problems.base import (
    Metric,
    MultiTaskModel,
    Prediction,
    Problem,
    Recipe,
    Split,
)
from ntkmtl.bench.problems.table._batch import Batch
from ntkmtl.bench.problems.table._columns import COUNTS, Column, Target
from ntkmtl.bench.problems.table._data import (
    SPLITS,
    Asked,
    listed,
    prepare,
    types_of,
)
from ntkmtl.bench.problems.table._model import TableNet, backbone
from ntkmtl.bench.problems.table._read import TableError, shorten

__all__ = ["Table", "macro_f1", "recipe_for"]

VERSION = "table 1"
"""Changes with everything in reading, encoding, network and losses that changes a run."""

STEPS = 2_500
SHOWN = 30


def recipe_for(rows: int) -> Recipe:
    """Return the recipe for so many training rows.

    Small tables get small batches and many epochs, so that every table gets about 2,500 steps and
    at least two epochs.

    Args:
        rows: Number of training rows, at least 8.

    Example:
        >>> for rows in (100, 538, 6_387, 1_000_000):
        ...     found = recipe_for(rows)
        ...     print(found.epochs, found.batch_size)
        208 8
        156 32
        104 256
        3 1024
    """
    batch = 8
    while batch < 1024 and batch * 2 <= rows / 16:
        batch *= 2
    epochs = max(2, round(STEPS / (rows // batch)))
    return Recipe(
        epochs=epochs,
        batch_size=batch,
        learning_rate=2e-3,
        minibatches=4,
        description=(
            f"The package's recipe for {rows:,} training rows, about {STEPS:,} steps and at least "
            "2 epochs; no early stopping, nothing tuned to this table"
        ),
    )


def _default_width(rows: int) -> int:
    return 64 if rows < 1_000 else 128 if rows < 20_000 else 256


def macro_f1(predicted: Tensor, truth: Tensor, classes: int) -> float:
    """Return the mean F1 score of the classes that occur in the labels or the predictions.

    Args:
        predicted: Class numbers, int64 of shape (b,).
        truth: The same for the labels.
        classes: Number of classes.

    Example:
        >>> import torch
        >>> macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3)
        0.6666666666666666
    """
    both = torch.bincount(truth[predicted == truth], minlength=classes).double()
    total = torch.bincount(truth, minlength=classes) + torch.bincount(predicted, minlength=classes)
    occurs = total > 0
    return float((2 * both[occurs] / total[occurs].double()).mean())


class Table(Problem):
    r"""A user's table: some columns are predicted, all others are what they are predicted by.

    Rows are split at random, columns are typed by what they hold, and a perceptron with one linear
    head per target is trained. Regression targets are standardized by the training rows and
    trained by mean squared errors; classes by cross-entropy. A missing label takes no part in its
    task's loss. Metrics are the root mean squared error in the target's own units, and macro F1.

    Args:
        csv: The file: .csv, .tsv, .txt, .parquet, .pq or .arff.
        targets: Names of the columns to predict, as a list, or with commas between them.
        types: Types of columns instead of those found, as a mapping or as ``"a=regression,
            b=category"``. Targets are ``regression`` or ``classification``; other columns
            ``number``, ``category``, ``date`` or ``ignore``.
        split_column: A column that says train, val or test; else rows are split at random.
        split_seed: Seed of that. The runs of a comparison share one split.
        val: Share of the rows for validation.
        test: Share of the rows for testing.
        missing: Further strings that stand for a missing value, numbers in whatever form.
        encoding: Encoding of a CSV or ARFF file.
        separator: Separator of a CSV file, found from its header if None.
        decimal: Decimal sign of a CSV file.
        max_categories: Most levels of a category that get their own column; the rest share
            one.
        width: Width of the network, by the number of rows if None.
        depth: Number of its layers.
        dropout: Probability of dropping an entry after each layer.
        architecture: How much the tasks share: ``hard``, ``cross-stitch``, ``mmoe``, ``cgc``,
            ``ple`` or ``dselect-k``, over the perceptron. See
            :mod:`ntkmtl.bench.problems.architectures`.
        architecture_options: Settings of the architecture, as a mapping.

    Raises:
        ValueError: The architecture or one of its settings is unknown or out of range.
        TableError: The file cannot be read, or cannot be trained on as asked for; the message names
            file, column and row.

    Example:
        >>> import pathlib, tempfile, torch
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "houses.csv"
        >>> rows = [f"{a},{a % 3},{7 * a % 50},{'yes' if a % 2 else 'no'}" for a in range(40)]
        >>> _ = file.write_text("\n".join(["area,rooms,price,sold", *rows]))
        >>> problem = Table(file, targets="price,sold")
        >>> problem.tasks, [metric.label for metric in problem.metrics]
        (('price', 'sold'), ['price RMSE', 'sold F1'])
        >>> batch = problem.batch("train", torch.arange(8))
        >>> model = problem.model()
        >>> sorted(problem.losses(model.predict(model.represent(batch)), batch))
        ['price', 'sold']
    """

    name: ClassVar[str] = "table"
    summary: ClassVar[str] = PROBLEMS["table"].summary

    def __init__(
        self,
        csv: str | Path | None = None,
        targets: str | Sequence[str] = (),
        types: str | Mapping[str, str] | None = None,
        split_column: str | None = None,
        split_seed: int = 0,
        val: float = 0.15,
        test: float = 0.15,
        missing: str | Sequence[str] = (),
        encoding: str = "utf-8",
        separator: str | None = None,
        decimal: str = ".",
        max_categories: int = 20,
        width: int | None = None,
        depth: int = 2,
        dropout: float = 0.0,
        architecture: str = "hard",
        architecture_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._architecture = choose(architecture, architecture_options)
        if csv is None:
            raise TableError("say which file to read, as --csv FILE (CSV, Parquet or ARFF)")
        path = Path(str(csv)).expanduser()
        _check_numbers(
            {
                "split_seed": (split_seed, 0, 2**63 - 1),
                "max_categories": (max_categories, 1, 1_000),
                "width": (1 if width is None else width, 1, 8_192),
                "depth": (depth, 1, 20),
            }
        )
        _check_shares(val, test, dropout)
        try:
            stat = path.stat()
        except OSError as error:
            raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
        self.path = path
        self._asked = Asked(
            path.resolve(),
            (stat.st_mtime_ns, stat.st_size),
            listed(targets),
            types_of(types),
            None if split_column is None else str(split_column),
            split_seed,
            float(val),
            float(test),
            listed(missing),
            encoding,
            separator,
            decimal,
            max_categories,
        )
        # The user's own spelling of the path in messages; the resolved one finds the same table.
        self._prepared = found = prepare(self._asked)
        self._by_name = {task.target.name: task for task in found.tasks}
        rows = self.size("train")
        self._network = {
            "width": width or _default_width(rows),
            "depth": depth,
            "dropout": float(dropout),
        }
        self.tasks = tuple(self._by_name)
        self.metrics = tuple(_metric(task.target) for task in found.tasks)
        self.recipe = recipe_for(rows)
        # Settings that do not fit are refused now, at no cost.
        with torch.device("meta"):
            self.model()

    @property
    def options(self) -> dict[str, Any]:
        """The file's content, how it is read and split, and the network; not where the file is."""
        asked = self._asked
        return {
            "data_sha256": self._prepared.sha256,
            "targets": {
                task.target.name: "classification" if task.target.classes else "regression"
                for task in self._prepared.tasks
            },
            "types": dict(asked.types),
            "split": {"column": asked.split_column}
            if asked.split_column is not None
            else {"seed": asked.split_seed, "val": asked.val, "test": asked.test},
            "reading": {
                "missing": list(asked.missing),
                "encoding": asked.encoding,
                "separator": asked.separator,
                "decimal": asked.decimal,
                "max_categories": asked.max_categories,
            },
            "network": {**self._network, **self._architecture.options},
            "version": VERSION,
        }

    def size(self, split: Split) -> int:
        """Return the number of rows in a split."""
        return int(self._prepared.splits[split].inputs.shape[0])

    def batch(self, split: Split, indices: Tensor) -> Batch:
        """Return the rows of a split at ``indices``."""
        whole = self._prepared.splits[split]
        return Batch(
            whole.inputs.index_select(0, indices),
            tuple(labels.index_select(0, indices) for labels in whole.labels),
        )

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialized network: :class:`TableNet`, or another architecture over it.

        Raises:
            ValueError: A task is unknown or named twice.
        """
        outputs = [self._prepared.tasks[place].size for place in self._chosen(tasks)]
        inputs, width = len(self._prepared.inputs), int(self._network["width"])
        depth, dropout = int(self._network["depth"]), self._network["dropout"]
        if self._architecture.name == "hard":
            return TableNet(inputs, outputs, width, depth, dropout)
        return self._architecture.build(
            backbone(inputs, width, depth, dropout),
            [partial(nn.Linear, width, size) for size in outputs],
        )

    def losses(
        self, outputs: Sequence[Tensor], batch: Batch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return each task's mean squared error or cross-entropy over the rows with a label.

        Raises:
            ValueError: There are not as many outputs as tasks, or a task is unknown.
        """
        chosen = self._chosen(tasks)
        if len(outputs) != len(chosen):
            raise ValueError(f"{len(outputs)} outputs for {len(chosen)} tasks")
        found: dict[str, Tensor | None] = {}
        for place, output in zip(chosen, outputs, strict=True):
            labels = batch.labels[place]
            classes = self._prepared.tasks[place].target.classes
            known = labels >= 0 if classes else ~labels.isnan()
            count = int(known.sum())
            if count == 0:
                found[self.tasks[place]] = None
                continue
            if count < len(labels):
                labels, output = labels[known], output[known]
            found[self.tasks[place]] = (
                functional.cross_entropy(output, labels)
                if classes
                else functional.mse_loss(output[:, 0], labels)
            )
        return found

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return root mean squared errors in the targets' units, or macro F1 scores, per task.

        Raises:
            ValueError: The network has not as many heads as there are tasks.
        """
        chosen = self._chosen(tasks)
        training = model.training
        model.eval()
        parts: list[list[Tensor]] = []
        try:
            with torch.no_grad():
                for start in range(0, self.size(split), 16_384):
                    stop = min(start + 16_384, self.size(split))
                    batch = self.batch(split, torch.arange(start, stop))
                    parts.append(list(model.predict(model.represent(batch))))
        finally:
            model.train(training)
        if len(parts[0]) != len(chosen):
            raise ValueError(f"{len(parts[0])} outputs for {len(chosen)} tasks")
        values = {
            place: self._metric(place, torch.cat([part[number] for part in parts]), split)
            for number, place in enumerate(chosen)
        }
        # Metrics stand in the order of the problem's tasks, heads in that of `tasks`.
        return torch.tensor([values[place] for place in sorted(values)], dtype=torch.float64)

    def predictions(
        self, outputs: Sequence[Tensor], tasks: Sequence[str] | None = None
    ) -> dict[str, Prediction]:
        """Return numbers in the targets' own units, or classes with their probabilities."""
        found = {}
        for place, output in zip(self._chosen(tasks), outputs, strict=True):
            task = self._prepared.tasks[place]
            output = output.double()
            if task.target.classes:
                shares = output.softmax(1)
                found[task.target.name] = Prediction(shares.argmax(1), task.target.classes, shares)
            else:
                # Halves: the difference of two of the largest floats would be infinite.
                values = (output[:, 0] / 2 * task.scale + task.center / 2) * 2
                found[task.target.name] = Prediction(values)
        return found

    def truth(
        self, split: Split, indices: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the table's own numbers, NaN where missing, or class numbers, -1 where missing."""
        columns = self._prepared.truth[split]
        return {self.tasks[place]: columns[place][indices] for place in self._chosen(tasks)}

    def _metric(self, place: int, output: Tensor, split: Split) -> float:
        task, truth = self._prepared.tasks[place], self._prepared.truth[split][place]
        known = truth >= 0 if task.target.classes else ~truth.isnan()
        if task.target.classes:
            return macro_f1(output.argmax(1)[known], truth[known], task.size)
        error = output[:, 0].double() - (truth / 2 - task.center / 2) / task.scale * 2
        return float(error[known].square().mean().sqrt() * task.scale)

    def trivial(self, split: Split = "test") -> Tensor:
        """Return the metrics of the predictor that knows no input.

        It says the mean of the training labels, or the most frequent class. A network's error
        over its error is the relative RMSE of the multi-target literature.

        Args:
            split: The rows to judge it on.

        Returns:
            float64 of shape (number of metrics,).
        """
        values = []
        for place, task in enumerate(self._prepared.tasks):
            truth = self._prepared.truth[split][place]
            if task.target.classes:
                training = self._prepared.truth["train"][place]
                training, truth = training[training >= 0], truth[truth >= 0]
                said = torch.bincount(training).argmax().expand_as(truth)
                values.append(macro_f1(said, truth, task.size))
            else:
                error = ((truth / 2 - task.center / 2) / task.scale * 2)[~truth.isnan()]
                values.append(float(error.square().mean().sqrt() * task.scale))
        return torch.tensor(values, dtype=torch.float64)

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        sizes = [self.size(split) for split in SPLITS]
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        classes = sum(bool(task.target.classes) for task in self._prepared.tasks)
        numbers = len(self.tasks) - classes
        counts = " and ".join(
            f"{count} {what} target{'' if count == 1 else 's'}"
            for count, what in ((numbers, "regression"), (classes, "classification"))
            if count
        )
        judged = " and ".join(
            what
            for count, what in (
                (numbers, "root mean squared errors (RMSE) in the targets' units"),
                (classes, "macro F1 scores"),
            )
            if count
        )
        hard = self._architecture.name == "hard"
        said = "" if hard else f"Architecture {self._architecture.describe()}. "
        return (
            f"{self.path.name}: {sum(sizes):,} rows ({sizes[0]:,} for training, {sizes[1]:,} for "
            f"validation, {sizes[2]:,} for testing), "
            f"{len(self._prepared.inputs)} inputs, {counts}. "
            f"The network is a perceptron of {self._network['depth']} layers of "
            f"{self._network['width']} with one linear head per target: {parameters:,} parameters. "
            f"{said}"
            f"Metrics are {judged} on the test rows, after the last epoch."
        )

    def notice(self) -> str:
        """Return how the table was read, to be shown before training."""
        columns = self._prepared.columns
        features = [column for column in columns if column.role == "feature"]
        shown = [c for c in columns if c.role != "feature"]
        room = max(0, SHOWN - len(shown))
        hidden = features[room:]
        lines = [("column", "role", "type", "missing", "values", "note")]
        lines += [_line(c) for c in shown if c.role != "left out"]
        lines += [_line(c) for c in features[:room]]
        if hidden:
            kinds = ", ".join(sorted({column.kind for column in hidden}))
            missing = sum(column.missing for column in hidden)
            lines.append((f"... {len(hidden)} more", "feature", kinds, f"{missing:,}", "", ""))
        out = [c for c in shown if c.role == "left out"]
        lines += [_line(column) for column in out[:SHOWN]]
        if len(out) > SHOWN:
            lines.append((f"... {len(out) - SHOWN} more", "left out", "", "", "", ""))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        text = [
            "  ".join(
                cell.rjust(widths[i]) if i == 3 else cell.ljust(widths[i]) if i < 5 else cell
                for i, cell in enumerate(line)
            ).rstrip()
            for line in lines
        ]
        more = ""
        if self._prepared.unlabeled:
            more = f" ({self._prepared.unlabeled:,} rows without any label are left out)"
        if out:
            names = ", ".join(shorten(c.name, 30)[1:-1] for c in out[:8])
            plural = "column is" if len(out) == 1 else "columns are"
            more += f"\nWarning: {len(out)} {plural} not used: {names}"
            more += ", ..." if len(out) > 8 else ""
        if any(column.note.endswith(COUNTS) for column in columns):
            more += "\nTargets of few whole numbers can be classes: --types NAME=classification."
        recipe = self.recipe
        return (
            "\n".join(text) + f"\n{self.describe()}{more}\n"
            f"Recipe: {recipe.epochs} epochs, batches of {recipe.batch_size}, learning rate "
            f"{recipe.learning_rate:g}. {recipe.description}."
        )

    def _chosen(self, tasks: Sequence[str] | None) -> list[int]:
        if tasks is None:
            return list(range(len(self.tasks)))
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown:
            raise ValueError(
                f"no task is named {', '.join(map(repr, unknown))}. Known: {', '.join(self.tasks)}"
            )
        if len(set(tasks)) != len(tasks) or not tasks:
            raise ValueError(f"tasks must be named once each, at least one. Found {list(tasks)}.")
        return [self.tasks.index(task) for task in tasks]


def _line(column: Column) -> tuple[str, str, str, str, str, str]:
    name = shorten(column.name, 32)[1:-1]
    missing = f"{column.missing:,}"
    content = column.content if len(column.content) <= 44 else column.content[:41] + "..."
    return name, column.role, column.kind, missing, content, column.note


def _metric(target: Target) -> Metric:
    if target.classes:
        return Metric(target.name, target.name, higher_is_better=True, label=f"{target.name} F1")
    return Metric(target.name, target.name, unit=target.unit, label=f"{target.name} RMSE")


def _check_numbers(ranges: Mapping[str, tuple[Any, int, int]]) -> None:
    for key, (value, low, high) in ranges.items():
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise TableError(f"{key} must be a whole number from {low} to {high}. Found {value!r}.")


def _check_shares(val: Any, test: Any, dropout: Any) -> None:
    for key, share in (("val", val), ("test", test), ("dropout", dropout)):
        low_open = key != "dropout"
        if not isinstance(share, int | float) or isinstance(share, bool):
            raise TableError(f"{key} must be a number. Found {share!r}.")
        if not (0 <= share < 1) or (low_open and share == 0):
            raise TableError(f"{key} must be a share between 0 and 1. Found {share!r}.")
    if val + test >= 1:
        raise TableError(f"val and test leave nothing to train on. Found {val} and {test}.")
