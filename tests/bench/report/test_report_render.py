"""The table in each of its formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from report_folders import METRICS, realistic, toy, write_run
from rich.console import Console

from ntkmtl.bench.report import FORMATS, SeedMean, build_table, print_table, render, rich_table
from ntkmtl.bench.runs import RunFileError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
toy

method  accuracy (%) ↑      mae (m) ↓   MR ↓       Δm (%) ↓  time (× LS)
------------------------------------------------------------------------
stl        50.00 ±0.00   0.200 ±0.000      -              -   1.00 ±0.00
uw         40.00 ±0.00  *0.100 ±0.000   2.00  *-15.00 ±0.00   0.80 ±0.00
ls         50.00 ±5.00   0.250 ±0.050   2.50    12.50 ±7.50   1.00 ±0.33
ntkmtl    *60.00 ±0.00   0.240 ±0.020  *1.50     0.00 ±5.00   2.00 ±0.00

* best of the multi-task methods.
"""
MARKDOWN = """\
| Method | accuracy (%) ↑ | mae (m) ↓ | MR ↓ | Δm (%) ↓ | time (× LS) |
| --- | ---: | ---: | ---: | ---: | ---: |
| stl | 50.00 ± 0.00 | 0.200 ± 0.000 | - | - | 1.00 ± 0.00 |
| uw | 40.00 ± 0.00 | **0.100** ± 0.000 | 2.00 | **-15.00** ± 0.00 | 0.80 ± 0.00 |
| ls | 50.00 ± 5.00 | 0.250 ± 0.050 | 2.50 | 12.50 ± 7.50 | 1.00 ± 0.33 |
| ntkmtl | **60.00** ± 0.00 | 0.240 ± 0.020 | **1.50** | 0.00 ± 5.00 | 2.00 ± 0.00 |

- Mean ± standard error over 2 seeds (0, 1)"""
LATEX = r"""\begin{tabular}{lrrrrr}
\toprule
Method & accuracy (\%) $\uparrow$ & mae (m) $\downarrow$ & MR $\downarrow$ & $\Delta$m (\%) $\downarrow$ & time ($\times$ LS) \\
\midrule
stl & 50.00 $\pm$ 0.00 & 0.200 $\pm$ 0.000 & - & - & 1.00 $\pm$ 0.00 \\
\midrule
uw & 40.00 $\pm$ 0.00 & \textbf{0.100} $\pm$ 0.000 & 2.00 & \textbf{$-$15.00} $\pm$ 0.00 & 0.80 $\pm$ 0.00 \\
ls & 50.00 $\pm$ 5.00 & 0.250 $\pm$ 0.050 & 2.50 & 12.50 $\pm$ 7.50 & 1.00 $\pm$ 0.33 \\
ntkmtl & \textbf{60.00} $\pm$ 0.00 & 0.240 $\pm$ 0.020 & \textbf{1.50} & 0.00 $\pm$ 5.00 & 2.00 $\pm$ 0.00 \\
\bottomrule
\end{tabular}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("format", "expected"), [("text", TEXT), ("markdown", MARKDOWN), ("latex", LATEX)]
)
def test_snapshots(tmp_path: Path, format: str, expected: str) -> None:
    found = render(build_table(toy(tmp_path)), format)
    assert found.startswith(expected)
    assert "Reduced recipe" in found
    assert found.endswith("\n")


def test_csv_holds_full_precision(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["method"] for row in rows] == ["stl", "uw", "ls", "ntkmtl"]
    ls = table.row("ls")
    assert ls.delta_m is not None
    assert ls.estimates[1] is not None
    assert float(rows[2]["delta_m"]) == ls.delta_m.mean
    assert float(rows[2]["delta_m stderr"]) == ls.delta_m.stderr
    assert float(rows[2]["mae stderr"]) == ls.estimates[1].stderr
    assert float(rows[2]["mean_rank"]) == 2.5
    assert float(rows[2]["seconds_per_epoch"]) == 1.5
    assert float(rows[2]["relative_time"]) == 1.0
    assert float(rows[2]["relative_time stderr"]) == pytest.approx(1 / 3)
    assert rows[0]["delta_m"] == ""
    assert rows[0]["seeds"] == "2"


def test_json_holds_everything(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    assert json.loads(render(table, "json")) == json.loads(json.dumps(table.to_dict()))


def test_json_has_no_infinities(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.1])
    table = build_table(tmp_path)
    row = replace(table.rows[0], estimates=(SeedMean(1.0, math.inf, 2),) * 2)
    text = render(replace(table, rows=(row,)), "json")
    assert json.loads(text, parse_constant=pytest.fail)["rows"][0]["estimates"][1]["stderr"] is None


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'xml'; choose one of text, markdown"):
        render(build_table(toy(tmp_path)), "xml")


def test_methods_that_look_the_same_are_best_together(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.10004])
    write_run(tmp_path, "uw", 0, [40.0, 0.10001])
    text = render(build_table(tmp_path))
    assert text.count("*0.100") == 2
    assert text.count("*50.00") == 1


def test_a_single_method_is_not_called_best(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.1])
    assert "**" not in render(build_table(tmp_path), "markdown")


def test_a_diverged_run_does_not_widen_the_column(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.1])
    write_run(tmp_path, "uw", 0, [50.0, 1.2345e30])
    write_run(tmp_path, "si", 0, [50.0, 0.2])
    text = render(build_table(tmp_path))
    assert "1.23e+30" in text
    assert "0.200" in text


HOSTILE = "a|b_c*[x](y)`z`\\ $5 & 10% #1 {e} ~^<script>\x1b[31m\nnew\u202e"


def hostile(root: Path) -> Path:
    metrics = [{**METRICS[0], "label": HOSTILE, "unit": HOSTILE}, METRICS[1]]
    place = write_run(root, "ls", 0, [50.0, 0.1], metrics=metrics)
    path = place / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["method"] = HOSTILE
    config["problem"] = HOSTILE
    path.write_text(json.dumps(config), encoding="ascii")
    return root


@pytest.mark.parametrize("format", FORMATS)
def test_hostile_names(tmp_path: Path, format: str) -> None:
    text = render(build_table(hostile(tmp_path)), format)
    text.encode("utf-8")
    if format in ("csv", "json"):
        return
    assert "\x1b" not in text
    assert "\u202e" not in text
    if format == "markdown":
        row = text.splitlines()[2]
        assert row.startswith(r"| a\|b\_c\*\[x\](y)\`z\`\\ \$5 &amp; 10% #1 {e} \~^&lt;script&gt;")
        # Only the bars that part the cells are bare.
        assert row.replace(r"\|", "").count("|") == 7
    if format == "latex":
        row = text.splitlines()[4]
        assert row.startswith(
            r"a\textbar{}b\_c*[x](y)`z`\textbackslash{} \$5 \& 10\% \#1 \{e\} "
            r"\textasciitilde{}\textasciicircum{}\textless{}script\textgreater{}"
        )
        assert row.count(" & ") == 5


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    path = hostile(tmp_path) / "toy" / "ls" / "seed-0" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"method": "ls\ud800"}), encoding="ascii")
    with pytest.raises(RunFileError, match=r"config\.json: holds half of a surrogate pair"):
        build_table(tmp_path)


def test_hostile_names_in_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    print_table(build_table(hostile(tmp_path)), Console(file=out, width=200, force_terminal=False))
    assert "\x1b" not in out.getvalue()
    assert "[x](y)" in out.getvalue()


def test_names_of_a_million_characters(tmp_path: Path) -> None:
    metrics = [{**METRICS[0], "label": "m" * 1_000_000}, METRICS[1]]
    write_run(tmp_path, "ls", 0, [50.0, 0.1], metrics=metrics)
    assert len(render(build_table(tmp_path))) < 10_000


def test_markup_of_rich_is_text(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.1])
    place = tmp_path / "toy" / "ls"
    place.rename(place.with_name(quote("[bold]", safe="")))
    path = next(tmp_path.glob("toy/*/seed-0/config.json"))
    path.write_text(path.read_text().replace('"ls"', '"[bold]x[/bold]"'))
    out = io.StringIO()
    Console(file=out, width=120).print(rich_table(build_table(tmp_path)))
    assert "[bold]x[/bold]" in out.getvalue()


def test_rich_marks_the_best_bold(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system="standard")
    console.print(rich_table(build_table(toy(tmp_path))))
    assert re.search(r"\x1b\[1m *60\.00\x1b\[0m", out.getvalue())
    assert not re.search(r"\x1b\[1m *50\.00\x1b\[0m", out.getvalue())


def test_a_narrow_terminal_cuts_no_number(tmp_path: Path) -> None:
    table = build_table(realistic(tmp_path, seeds=2, steps=6, epochs=2))
    wide, narrow = io.StringIO(), io.StringIO()
    print_table(table, Console(file=wide, width=200))
    print_table(table, Console(file=narrow, width=60))
    assert "…" not in narrow.getvalue()
    assert max(map(len, narrow.getvalue().splitlines())) <= 60
    assert wide.getvalue().count("ntkmtl-sr") == 1
    assert narrow.getvalue().count("ntkmtl-sr") > 1
    # Every number is in both, once.
    numbers = [t for t in wide.getvalue().split() if t.startswith("±")]
    assert sorted(numbers) == sorted(t for t in narrow.getvalue().split() if t.startswith("±"))


def test_the_package_imports_neither_torch_nor_plotly() -> None:
    code = (
        "import sys, ntkmtl.bench.report as r; dir(r); "
        "assert not {'torch', 'plotly', 'jinja2', 'matplotlib', 'numpy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("plotly", "write_html('{0}')"),
        ("jinja2", "write_html('{0}')"),
        ("matplotlib", "save_figures('{0}', '{0}')"),
        ("rich", "rich_table(r.build_table('{0}'))"),
        ("rich", "print_table(r.build_table('{0}'))"),
        ("numpy", "build_table('{0}')"),
    ],
)
def test_missing_extras_say_what_to_type(tmp_path: Path, module: str, call: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import ntkmtl.bench.report as r\n"
        "from ntkmtl.errors import MissingExtraError\n"
        f"try: r.{call.format(toy(tmp_path))}\n"
        "except MissingExtraError as error: print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert module in found
    assert "pip install 'ntkmtl[bench]'" in found
