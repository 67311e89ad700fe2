"""Write the decision guide, `docs/decide.md`, from the rows that `ntkmtl.advise` uses.

    python scripts/make_decision_page.py

The tests fail where it is not up to date.
"""

from __future__ import annotations

from pathlib import Path

from ntkmtl.balance import RULES
from ntkmtl.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "decide.md"

PARTS = {
    "method": ("Which method", "The first row that is true of your network decides."),
    "option": ("Which options", "Each row that is true adds its argument to `Balancer(...)`."),
    "call": ("Which call", "It replaces `sum(losses).backward()`, or what stands for it."),
}

START = """# Decision guide

From what you have to a line of code. `ntkmtl.advise(losses)` reads the network off your losses,
applies the rows of this page, and prints the lines for your case:

```python
import torch
import ntkmtl

trunk, heads = torch.nn.Linear(8, 16), [torch.nn.Linear(16, 1) for _ in range(2)]
z = trunk(torch.randn(32, 8)).relu()
losses = {"size": heads[0](z).square().mean(), "kind": heads[1](z).square().mean()}
```

```python
>>> advice = ntkmtl.advise(losses, priorities={"size": 3}, loop="scaler")
balancer = Balancer(priorities={'size': 3})
balancer.backward(losses, scaler=scaler)
# Exact kernels as often as the budget allows, averaged: right for any network. (docs/...)
# A factor in front of a loss is balanced away; a priority is not. (docs/guide.md#priorities)
# Pass the losses unscaled; the scaler skips steps as always. (docs/guide.md#mixed-precision)
```

`advice.balancer`, `advice.call` and `advice.rules` are the same as data. Not sure that you need any
of this? [Is balancing worth it for my run?](gallery/plot_12_worth_it.py) shows how to find out.
"""

END = """
A method that reads losses only, such as `Balancer("uw")` or `Balancer("si")`, costs next to nothing
and is a baseline worth running. [All methods compared](comparison.md) and [what the length of the
gradient does](length.md) show what to expect.
"""


def page() -> str:
    """Return the text of the page."""
    parts = [START]
    for part, (title, note) in PARTS.items():
        rows = [rule for rule in RULES if rule.decides == part]
        parts.append(f"\n## {title}\n\n{note}\n\n| you have | write | why |\n| --- | --- | --- |\n")
        for rule in rows:
            code = rule.code.format(budget="", priorities='{"name": 3}')
            parts.append(f"| {rule.have} | `{code}` | {rule.why} [More]({rule.page}) |\n")
    return "".join([*parts, END])


if __name__ == "__main__":
    write_text(PAGE, page())
