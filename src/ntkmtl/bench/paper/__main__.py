"""Print how the published columns agree with the published metrics."""

from __future__ import annotations

from ntkmtl.bench.paper import report

if __name__ == "__main__":
    print(report())
