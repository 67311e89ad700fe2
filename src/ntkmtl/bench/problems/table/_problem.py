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
from ntkmtl.bench.problems._supervised import (
    SPLITS,
    evaluating,
    moved,
    paired,
    positions,
    refuse_unfit,
)
from ntkmtl.bench.problems.architectures import choose
from ntkmtl.bench.problems.base import MultiTaskModel, Prediction, Problem, Split
from ntkmtl.bench.problems.table._data import PreparedTable, prepare, shown_columns, unused
from ntkmtl.bench.problems.table._fitted import FittedTable, NewRows, as_strings
from ntkmtl.bench.problems.table._metrics import REFERENCES, metric_of, references, score, trivial
from ntkmtl.bench.problems.table._model import (
    RowBatch,
    backbone,
    default_width,
    recipe_for,
)
from ntkmtl.bench.problems.table._options import TableOptions, takes_fields
from ntkmtl.bench.problems.table._raw import TableError

VERSION = "table 2"
"""Changes with everything in reading, encoding, network and losses that changes a run."""


class Table(Problem):
    r"""A user's table: some columns are predicted, all others are what they are predicted by.

    Rows are split, columns are typed by what they hold, and a small residual network with one
    linear head per target is trained. Regression targets are standardized by the training rows and
    trained by mean squared errors; classes by cross-entropy. A missing label takes no part in its
    task's loss. Metrics are the root mean squared error in the target's own units, and macro F1.

    Arguments are the fields of :class:`~ntkmtl.bench.problems.table._options.TableOptions`.

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

    @takes_fields
    def __init__(self, *values: Any, **options: Any) -> None:
        asked = TableOptions(*values, **options)
        self._architecture = choose(asked.architecture, asked.architecture_options)
        self._asked = asked.of_data()
        self.path = asked.path
        data = prepare(self._asked)
        self._data: PreparedTable | None = data
        rows = int(data.splits["train"].inputs.shape[0])
        width = asked.width or default_width(rows)
        network = {"width": width, "depth": asked.depth, "dropout": float(asked.dropout)}
        self._set_up(data.fitted, network)
        self.recipe = recipe_for(rows)
        self._options = self._described_options(data.sha256)
        refuse_unfit(self)

    def _set_up(self, fitted: FittedTable, network: Mapping[str, Any]) -> None:
        self._fitted = fitted
        self._network = dict(network)
        self.tasks = tuple(target.name for target in fitted.targets)
        self.metrics = tuple(metric_of(target) for target in fitted.targets)

    @property
    def _prepared(self) -> PreparedTable:
        if self._data is None:
            raise TableError("the data of this table are not loaded: it predicts new rows only")
        return self._data

    @property
    def options(self) -> dict[str, Any]:
        """The file's content, how it is read and split, and the network; not where the file is."""
        return dict(self._options)

    def _described_options(self, sha256: str) -> dict[str, Any]:
        asked, shares, reading = self._asked, self._asked.shares, self._asked.reading
        roles = asked.roles
        by = {"column": roles.split, "group": roles.group, "time": roles.time}
        split: dict[str, Any] = {key: name for key, name in by.items() if name is not None}
        if roles.split is None:
            split |= {"seed": shares.seed, "val": shares.val, "test": shares.test}
        return {
            "data_sha256": sha256,
            "targets": {
                target.name: "classification" if target.classes else "regression"
                for target in self._fitted.targets
            },
            "types": dict(roles.types),
            "split": split,
            "reading": {
                "missing": list(reading.missing),
                "not_missing": list(reading.not_missing),
                "case_sensitive": reading.case_sensitive,
                "encoding": asked.encoding,
                "separator": asked.separator,
                "header": asked.header,
                "decimal": reading.decimal,
                "thousands": reading.thousands,
                "max_categories": asked.max_categories,
            },
            "network": {**self._network, **self._architecture.options},
            "version": VERSION,
        }

    # ------------------------------------------------------------------ data and network

    def size(self, split: Split) -> int:
        """Return the number of rows in a split; 0 where the data are not loaded."""
        return 0 if self._data is None else int(self._data.splits[split].inputs.shape[0])

    def batch(self, split: Split, indices: Tensor) -> RowBatch:
        """Return the rows of a split at ``indices``.

        Raises:
            TableError: The data are not loaded.
        """
        whole = self._prepared.splits[split]
        return RowBatch(
            whole.inputs.index_select(0, indices),
            tuple(labels.index_select(0, indices) for labels in whole.labels),
        )

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a new network of the architecture, with linear heads."""
        outputs = [self._fitted.targets[place].size for place in positions(self.tasks, tasks)]
        width, depth = int(self._network["width"]), int(self._network["depth"])
        return self._architecture.build(
            backbone(len(self._fitted.inputs), width, depth, self._network["dropout"]),
            [partial(nn.Linear, width, size) for size in outputs],
        )

    def losses(
        self, outputs: Sequence[Tensor], batch: RowBatch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return each task's mean squared error or cross-entropy over the rows with a label."""
        found: dict[str, Tensor | None] = {}
        for place, output in paired(self.tasks, outputs, tasks):
            labels, target = batch.labels[place], self._fitted.targets[place]
            known = target.known(labels)
            count = int(known.sum())
            if count == 0:
                found[self.tasks[place]] = None
                continue
            if count < len(labels):
                labels, output = labels[known], output[known]
            found[self.tasks[place]] = (
                functional.cross_entropy(output, labels)
                if target.classes
                else functional.mse_loss(output[:, 0], labels)
            )
        return found

    # ------------------------------------------------------------------ judging

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return root mean squared errors in the targets' units, or macro F1 scores, per task."""
        values = {}
        for place, output in self._outputs(model, split, tasks):
            target, truth = self._fitted.targets[place], self._prepared.truth[split][place]
            said = output.argmax(1) if target.classes else output[:, 0]
            values[place] = score(said, truth, target)
        # Metrics stand in the order of the problem's tasks, heads in that of `tasks`.
        return torch.tensor([values[place] for place in sorted(values)], dtype=torch.float64)

    def _outputs(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None
    ) -> list[tuple[int, Tensor]]:
        """Return each head's outputs for all rows of a split, behind the position of its task."""
        parts = []
        with evaluating(model):
            for rows in torch.arange(self.size(split)).split(16_384):
                batch = moved(self.batch(split, rows), model)
                parts.append([out.cpu() for out in model.predict(model.represent(batch))])
        return paired(self.tasks, [torch.cat(part) for part in zip(*parts, strict=True)], tasks)

    def selection(self, model: MultiTaskModel, tasks: Sequence[str] | None = None) -> float:
        """Return the mean over tasks of the validation loss relative to that of knowing no input.

        A regression's is the root mean squared error over that of the training mean, a
        classification's the cross-entropy over that of the training rows' shares of the classes.
        """
        labels = self._prepared.splits["val"].labels
        training = self._prepared.splits["train"].labels
        ratios = []
        for place, output in self._outputs(model, "val", tasks):
            truth, target = labels[place], self._fitted.targets[place]
            known = target.known(truth)
            truth, output = truth[known], output[known].double()
            if target.classes:
                seen = training[place][training[place] >= 0]
                shares = (torch.bincount(seen, minlength=target.size).double() + 1).log()
                blank = functional.cross_entropy(shares.expand(len(truth), -1), truth)
                ratios.append(float(functional.cross_entropy(output, truth) / blank))
            else:
                truth = truth.double()
                error = (output[:, 0] - truth).square().mean() / truth.square().mean().clamp(1e-30)
                ratios.append(float(error.sqrt()))
        return sum(ratios) / len(ratios)

    def trivial(self, split: Split = "test") -> Tensor:
        """Return the metrics of the predictor that knows no input.

        It says the mean of the training labels, or the most frequent class. A network's error
        over its error is the relative RMSE of the multi-target literature.

        Args:
            split: The rows to judge it on.

        Returns:
            float64 of shape (number of metrics,).
        """
        return trivial(self._prepared, split)

    def references(self) -> dict[str, Tensor]:
        """Return the test metrics of simple models: ``mean``, ``ridge`` and ``forest``.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        return references(self._prepared)

    reference_words: ClassVar[Mapping[str, str]] = REFERENCES

    # ------------------------------------------------------------------ predictions

    def predictions(
        self, outputs: Sequence[Tensor], tasks: Sequence[str] | None = None
    ) -> dict[str, Prediction]:
        """Return numbers in the targets' own units, or classes with their probabilities."""
        found = {}
        for place, output in paired(self.tasks, outputs, tasks):
            target, output = self._fitted.targets[place], output.double()
            if target.classes:
                shares = output.softmax(1)
                found[target.name] = Prediction(shares.argmax(1), target.classes, shares)
            else:
                # Halves: the sum of two of the largest floats would be infinite.
                values = (output[:, 0] / 2 * target.scale + target.center / 2) * 2
                found[target.name] = Prediction(values, dates=target.date)
        return found

    def truth(
        self, split: Split, indices: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the table's own numbers, NaN where missing, or class numbers, -1 where missing."""
        columns = self._prepared.truth[split]
        chosen = positions(self.tasks, tasks)
        return {self.tasks[place]: columns[place][indices] for place in chosen}

    def row_ids(self, split: Split) -> dict[str, list[str]]:
        """Return the columns of a split's rows that identify them, by name.

        Raises:
            TableError: The data are not loaded.
        """
        data = self._prepared
        found = {}
        for name, column in data.ids.items():
            texts = as_strings(column)
            found[name] = [texts[place] for place in data.places[split].tolist()]
        return found

    def encode_new(self, source: Any) -> NewRows:
        """Read and encode the rows of another file, as the training rows were.

        Args:
            source: A CSV, Parquet or ARFF file, or a pandas data frame; targets may be missing.

        Raises:
            TableError: It cannot be read, or has none of the columns that the network sees.
        """
        return self._fitted.encode(source)

    def fitted(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return encoders, targets and network as JSON values: all that :meth:`from_fitted` needs.

        No row of the table is among them, but the names of levels and the ends of ranges are.
        """
        return {
            "table": self._fitted.to_json(),
            "options": self._options,
            "network": self._network,
            "architecture": self._architecture.name,
            "architecture_options": self._architecture.options,
        }, {}

    @classmethod
    def from_fitted(
        cls, arguments: Mapping[str, Any], values: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Table:
        """Return the table without its rows: it builds networks and predicts new rows.

        Raises:
            TableError: The values are of another version, or damaged.
        """
        try:
            options, network = dict(values["options"]), dict(values["network"])
            version = options["version"]
            settings = (values["architecture"], values["architecture_options"])
            saved = values["table"]
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"the saved table is damaged: {error!r}") from error
        if version != VERSION:
            raise TableError(
                f"the network was trained by {version!r}, and this is {VERSION!r}: train it again, "
                "or predict with the version that trained it"
            )
        found = cls.__new__(cls)
        found._architecture = choose(settings[0], cls._given(settings[1]))
        found._data = None
        found._options = options
        found.path = Path(str(arguments.get("csv", "table.csv")))
        found._set_up(FittedTable.from_json(saved), network)
        found.recipe = recipe_for(8)
        return found

    @staticmethod
    def _given(options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key != "architecture"}

    # ------------------------------------------------------------------ words

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        sizes = [self.size(split) for split in SPLITS]
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        classes = sum(bool(target.classes) for target in self._fitted.targets)
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
        said = self._architecture.sentence
        return (
            f"{self.path.name}: {sum(sizes):,} rows ({sizes[0]:,} for training, {sizes[1]:,} for "
            f"validation, {sizes[2]:,} for testing), "
            f"{len(self._fitted.inputs)} inputs, {counts}. "
            f"The network is residual, {self._network['depth']} layers of "
            f"{self._network['width']} with one linear head per target: {parameters:,} parameters. "
            f"{said}"
            f"Metrics are {judged} on the test rows."
        )

    def notice(self) -> str:
        """Return how the table was read, to be shown before training."""
        data = self._prepared
        lines = [shown_columns(data.columns), self.describe(), *data.notes]
        if data.unlabeled:
            lines.append(f"{data.unlabeled:,} rows without any label are left out.")
        lines += filter(None, [unused(data.columns)])
        lines += [f"Warning: {warning}" for warning in data.warnings]
        return "\n".join(lines)
