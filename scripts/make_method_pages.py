"""Write what the docs list of methods: a page for each in `docs/methods/`, and the README's table.

    python scripts/make_method_pages.py

All of it comes from the registry and the docstrings. The tests fail where it is not up to date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from ntkmtl.files import write_text
from ntkmtl.weighting import MethodSpec, create, load, specs

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
README = ROOT / "README.md"
MARKS = ("<!-- methods -->\n", "<!-- end of methods -->")
BY_HAND = frozenset({"custom.md"})
"""Pages in the folder that this script does not write."""

FAMILIES = {
    "baseline": "Baselines",
    "losses": "From the losses alone",
    "gradients": "From gradients",
    "ntk": "From the neural tangent kernel",
}

REQUIRES = {
    "losses": "the losses",
    "eigenvalues": "the largest eigenvalue of each task's block of the extended NTK",
    "gramian": "the Gramian of the k gradients",
    "kernel": "the extended NTK with all blocks, between mini-batches too",
    "jacobian": "the k gradients, entry by entry",
}
COSTS = {
    ("losses", ""): "Hardly more than plain training.",
    ("exact", "jacobian"): (
        "One pass over the trunk per task; the k gradients are kept. With "
        '`source="representation"` only the method\'s own arithmetic.'
    ),
    ("exact", "other"): (
        "One pass over the trunk per task and mini-batch, plus the method's own solve. With "
        '`source="representation"` hardly more than the solve.'
    ),
    ("auto", "other"): (
        "One pass over the trunk per task and mini-batch, but only in few steps, as `budget` says "
        "([measured](../auto.md)). If a trunk is given and exact kernels are rare, also one more "
        "run of it in ten steps ([estimators](../estimators.md))."
    ),
    ("representation", "other"): "Hardly more than plain training, for any k and n.",
}


def cost(spec: MethodSpec, after_step: bool, tracks_gradients: bool) -> str:
    """Say what a method costs in its default form."""
    if spec.requires == "losses":
        text = COSTS["losses", ""]
        if after_step:
            text += " One more forward pass, for the losses after the step."
        return text
    source = spec.defaults.get("source", "exact")
    if tracks_gradients:
        return "One pass over the trunk per task, and two copies of the k gradients in memory."
    kind = "jacobian" if spec.requires == "jacobian" and source == "exact" else "other"
    return COSTS[source, kind]


def _equation(block: re.Match[str]) -> str:
    return "$$\n" + "\n".join(line.strip() for line in block[1].strip().splitlines()) + "\n$$"


def markdown(docstring: str) -> str:
    """Turn a docstring into Markdown: mathematics in dollars, sections as headings."""
    text = inspect.cleandoc(docstring)
    text = re.sub(r"^\.\. math::((?:.|\n(?! *\n))*)", _equation, text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", lambda m: f"${' '.join(m[1].split())}$", text)
    text = re.sub(r":(?:func|meth|class|mod):`~?([^`]*)`", r"`\1`", text)
    text = text.replace("``", "`")
    parts = re.split(r"^(Args|Raises|Example|Attributes|Returns|Note):$", text, flags=re.MULTILINE)
    pages = [parts[0].strip()]
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        body = inspect.cleandoc("\n" + body)
        if name == "Example":
            pages.append(f"## Example\n\n```pycon\n{body}\n```")
        elif name in ("Args", "Attributes"):
            items = re.sub(r"^(\w+): ", r"- `\1`: ", body, flags=re.MULTILINE)
            items = re.sub(r"\n {4}", "\n  ", items)
            pages.append(f"## {'Settings' if name == 'Args' else name}\n\n{items}")
        else:
            items = re.sub(r"^(\w+): ", r"- `\1`: ", body, flags=re.MULTILINE)
            pages.append(f"## {name}\n\n" + re.sub(r"\n {4}", "\n  ", items))
    return "\n\n".join(pages)


def page(spec: MethodSpec) -> str:
    """Return the page of one method."""
    loaded = load(spec.name)
    signature = ", ".join(
        f"{p.name}={p.default!r}" for p in inspect.signature(loaded).parameters.values()
    )
    defaults = ", ".join(f"{key}={value!r}" for key, value in spec.defaults.items())
    lines = [f"# {spec.name}", "", f"{spec.summary}.", ""]
    if spec.paper:
        lines += [f"Source: {spec.paper}.", ""]
    lines += [
        "| | |",
        "| --- | --- |",
        f"| requires | {REQUIRES[spec.requires]} |",
        f"| costs | {cost(spec, loaded.needs_after_step, loaded.tracks_gradients)} |",
        f"| settings | {f'`{signature}`' if signature else 'none'} |",
        f"| defaults in `Balancer` | {f'`{defaults}`' if defaults else 'those of `Balancer`'} |",
        f"| needs | {'; '.join(needs(spec)) or 'only calls of `backward`'} |",
        "",
        markdown(loaded.__doc__ or "").replace(
            "## Example\n",
            f'## Example\n\n`ntkmtl.weighting.create("{spec.name}")` returns an object of class '
            f"`{loaded.__name__}`.\n",
        ),
        "",
    ]
    return "\n".join(lines)


def needs(spec: MethodSpec) -> Iterator[str]:
    """Yield what a method needs besides calls of ``backward``."""
    made = create(spec.name)
    for what, advice in made.needs():
        yield f"`{what}`: {advice}"
    if made.needs_scores:
        yield "`scores`: call balancer.weighting.observe(scores) after each epoch"


NOT_INCLUDED = """## Not included

| method | why |
| --- | --- |
| SAM-GS (2506.06130) | its paper and its two published codes are three methods, see below |
| gradient-norm loss scaling (2509.23915) | its equation was not at hand, see below |

SAM-GS compares the lengths of gradients and takes gradients of equal length where they are too
unlike. What is averaged: the paper's Algorithm 1 takes all k x k pairs, each gradient with itself
too, which cannot be below 1 / k; the code for supervised tasks takes pairs of different tasks; that
for reinforcement learning takes no mean and asks for any one pair. What the step is then: the
algorithm multiplies the equalized gradients by the gradients once more, entry by entry, which would
be their squares; [both codes](https://github.com/ThomBors/samgs) do not.

Of the scaling by gradient norms there was the abstract, and one reader's notes by which
w_i = |sum_j g_j| / |g_i| at the last shared layer; no second source said so. But for the factor
common to all tasks, that is `lra` with `alpha=0`.

Numbers are those of arXiv. Two methods that need more than losses are recipes: SAMO
(2507.07883), which [perturbs parameters](../recipes/sharpness.md), and NTKMTL with
[the kernel of outputs](../analysis/output-kernels.md#ntkmtl-with-the-kernel-of-outputs), which
needs the network."""


def index() -> str:
    """Return the page that lists all methods, by family."""
    lines = [
        "# Methods",
        "",
        "All methods of the package, each with a page; pass the name to `Balancer` or to "
        "`--methods`.",
        "[The decision guide](../decide.md) helps to choose one, [the study](../study.md) and "
        "[a table of all](../comparison.md)",
        "compare them, and [a method of your own](custom.md) can be used in place of any name.",
        "",
        "`requires` says what a method computes its weights from: `losses` alone; the `gramian`, "
        "the k x k products of the",
        "tasks' gradients; the `jacobian`, these gradients entry by entry; the `kernel` or its "
        "`eigenvalues`, the extended NTK",
        "of all tasks and mini-batches ([sources](../guide.md#where-the-kernel-comes-from)).",
        "",
    ]
    for family, title in FAMILIES.items():
        lines += [f"## {title}", "", "| name | what it does | requires |", "| --- | --- | --- |"]
        lines += [
            f"| [{s.name}]({s.name}.md) | {s.summary} | {s.requires} |"
            for s in specs()
            if s.family == family
        ]
        lines.append("")
    lines += [NOT_INCLUDED, ""]
    lines += ["Written by `python scripts/make_method_pages.py` from the docstrings.", ""]
    return "\n".join(lines)


def readme() -> str:
    """Return the README with its table of methods up to date."""
    before, _, rest = README.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    rows = ["| name | what it does | requires | source |", "| --- | --- | --- | --- |"]
    rows += [f"| `{s.name}` | {s.summary} | {s.requires} | {s.paper} |" for s in specs()]
    return before + MARKS[0] + "\n".join(rows) + "\n" + end + after


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {"README.md": index(), **{f"{spec.name}.md": page(spec) for spec in specs()}}


def main() -> None:
    made = pages()
    for name, text in made.items():
        write_text(FOLDER / name, text)
    for path in FOLDER.glob("*.md"):
        if path.name not in made.keys() | BY_HAND:
            path.unlink()
    write_text(README, readme())
    print(f"{len(made)} pages in {FOLDER.name}, and the table in {README.name}")


if __name__ == "__main__":
    main()
