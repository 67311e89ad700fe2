"""Break the ten most load-bearing lines one by one, and see that a test notices each.

    python scripts/mutations.py
    python scripts/mutations.py --only rank,loss

Each mutation is one line of ``src/ntkmtl``, changed in a copy in a temporary folder, and the test
that is expected to fail then. The tests are first run on the code as it is. Ends with 1 if a test
passes although its line is broken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["MUTATIONS", "Mutation", "caught", "main"]

ROOT = Path(__file__).resolve().parents[1]
FAILED = 1
"""Exit status of pytest where a test failed; others are errors of another kind."""


class Mutation(NamedTuple):
    """One broken line.

    Attributes:
        name: One word.
        meaning: What the line is for.
        file: Where it is, below ``src/ntkmtl``.
        old: A part of the file that occurs once.
        new: What it becomes.
        test: The test that notices, as pytest takes it.
    """

    name: str
    meaning: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "shared",
        "what two tasks reach is shared, what one reaches is not",
        "graph/_cut.py",
        "if child is not None and masks[child] & (masks[child] - 1):",
        "if child is not None and masks[child]:",
        "tests/graph/test_zoo.py::test_the_cut_is_at_the_border_found_by_hand",
    ),
    Mutation(
        "weight",
        "the weight falls as the eigenvalue grows (Eq. 15)",
        "weighting/_ntkmtl.py",
        "(numerator / share) ** exponent",
        "(share / numerator) ** exponent",
        "tests/weighting/test_ntkmtl.py::test_ntkmtl_exponent",
    ),
    Mutation(
        "eigenvalue",
        "NTKMTL reads the largest eigenvalue",
        "kernel/_extended.py",
        "torch.linalg.eigvalsh(blocks)[:, -1]",
        "torch.linalg.eigvalsh(blocks)[:, 0]",
        "tests/kernel/test_kernel_extended.py::test_max_eigenvalues",
    ),
    Mutation(
        "scale",
        "rows of a mini-batch are scaled to its mean loss",
        "kernel/_partition.py",
        "torch.where(part > 0, total / part, 0.0)",
        "torch.where(part > 0, torch.ones_like(total / part), 0.0)",
        "tests/kernel/test_kernel_extended.py::test_gramian_is_that_of_the_whole_batch_whatever_n",
    ),
    Mutation(
        "heads",
        "heads are trained with their tasks' weights",
        "balance/_fill.py",
        "per_gradient = [w for w, n in zip",
        "per_gradient = [1.0 for w, n in zip",
        "tests/graph/test_zoo.py::test_the_exact_kernel_is_right_everywhere",
    ),
    Mutation(
        "average",
        "a moving average keeps `ema` of what was",
        "balance/_weigh.py",
        "decay * old + (1.0 - decay) * fresh",
        "decay * fresh + (1.0 - decay) * old",
        "tests/balance/test_balancer_separate_batches.py",
    ),
    Mutation(
        "loss",
        "a training curve shows means of losses",
        "bench/training/log.py",
        "                self.loss_counts[position] += 1\n",
        "                self.loss_counts[position] += 2\n",
        "tests/bench/training/test_training_losses.py::test_a_run_is_the_loop_by_hand",
    ),
    Mutation(
        "resume",
        "a resumed run draws the numbers that it would have drawn",
        "bench/training/loop.py",
        '        torch.set_rng_state(own["random"])\n',
        "",
        "tests/bench/training/test_trainer.py::test_a_stopped_run_ends_bit_equal",
    ),
    Mutation(
        "rank",
        "a drop in what should be high is a loss (Delta-m)",
        "metrics.py",
        "torch.where(higher, -drop, drop)",
        "torch.where(higher, drop, -drop)",
        "tests/test_metrics.py",
    ),
    Mutation(
        "split",
        "validation and test samples are not those of training",
        "bench/problems/_supervised.py",
        "return self._take(self._rows[split][indices])",
        'return self._take(self._rows["train"][indices])',
        "tests/bench/problems/test_qm9_mini.py::test_raw_targets_are_those_of_torch_geometric",
    ),
)


def _pytest(source: Path, tests: Sequence[str]) -> int:
    """Run tests on the package in a folder; return pytest's exit status."""
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False
    ).returncode


def caught(mutation: Mutation, source: Path) -> bool:
    """Return whether the mutation's test fails on the mutated package.

    Args:
        mutation: The mutation.
        source: A folder with a copy of the package, which is left as it was.

    Raises:
        ValueError: The line is not there once.
        RuntimeError: The tests could not be run.
    """
    path = source / "ntkmtl" / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.file} must hold {mutation.old.strip()!r} once, found "
            f"{text.count(mutation.old)}"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status = _pytest(source, [mutation.test])
    finally:
        path.write_text(text, encoding="utf-8")
    if status not in (0, FAILED):
        raise RuntimeError(f"{mutation.test} could not be run: pytest ended with {status}")
    return status == FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Apply all mutations, print caught or not, and return 1 if one was not."""
    parser = argparse.ArgumentParser(description="Break lines and see that tests notice.")
    parser.add_argument("--only", help="names of mutations, with commas between them")
    arguments = parser.parse_args(argv)
    names = [m.name for m in MUTATIONS] if arguments.only is None else arguments.only.split(",")
    chosen = [mutation for mutation in MUTATIONS if mutation.name in names]
    unknown = set(names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"no mutation is named {', '.join(sorted(unknown))}")
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        shutil.copytree(ROOT / "src" / "ntkmtl", source / "ntkmtl")
        if _pytest(source, [mutation.test for mutation in chosen]) != 0:
            print("a test fails on the code as it is", file=sys.stderr)
            return 1
        for mutation in chosen:
            found = caught(mutation, source)
            survived += not found
            said = "caught" if found else "NOT CAUGHT"
            print(f"{said:10}  {mutation.name:10}  {mutation.file}: {mutation.meaning}", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
