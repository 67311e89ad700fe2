"""The ten real tables of the page are those of its numbers."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs" / "problems"


def test_the_page_shows_what_was_measured() -> None:
    page = (DOCS / "table.md").read_text(encoding="utf-8")
    found = json.loads((DOCS / "tables.json").read_text(encoding="utf-8"))
    assert len(found["tables"]) == 10
    for name, table in found["tables"].items():
        means = " | ".join(f"{table['means'][who]:.3f}" for who in ("network", "ridge", "forest"))
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} ("))
        assert means in line
        assert table["worse_than_mean"]["network"] == []
    wins = sum(t["means"]["network"] <= t["means"]["ridge"] for t in found["tables"].values())
    assert wins == found["at_or_better_than_ridge"] >= 8
    assert f"as good as ridge or better on {wins} of 10 tables" in page
