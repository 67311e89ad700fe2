"""Write the two small tables of ``examples/study-small.toml``: real data that statsmodels ships.

    python examples/study_tables.py study-data

- ``star98.csv``: 303 school districts of California; in each, pupils above and below the national
  median in mathematics (Gill 2000). Two regressions.
- ``anes96.csv``: 944 voters of 1996; how far left or right they place themselves, the party that
  they feel close to, and whom they voted for (American National Election Studies). Two
  regressions and a classification.
"""

from __future__ import annotations

import sys
from pathlib import Path

from statsmodels.datasets import anes96, star98

DERIVED = ["PERMINTE_", "AVYRSEXP_", "PERSPEN_", "PTRATIO_"]
"""Prefixes of columns that are products of other columns."""


def main() -> None:
    """Write the tables."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "study-data")
    folder.mkdir(parents=True, exist_ok=True)
    schools = star98.load_pandas().data
    derived = [name for name in schools.columns if name.startswith(tuple(DERIVED))]
    schools.drop(columns=derived).to_csv(folder / "star98.csv", index=False)
    voters = anes96.load_pandas().data.drop(columns="logpopul")
    # In the file they are numbers with a point, which would be a third regression.
    voters["vote"] = voters["vote"].map({0.0: "Clinton", 1.0: "Dole"})
    voters.to_csv(folder / "anes96.csv", index=False)
    print(f"wrote {folder / 'star98.csv'} and {folder / 'anes96.csv'}")


if __name__ == "__main__":
    main()
