'''Studies: methods compared on several problems with the same budget for tuning each.

* :func:`read_plan` reads what is asked for, a TOML file.
* :func:`estimate` says how long it takes.
* :func:`run_study` trains what is missing, and leaves a JSON file for each problem and method.
* :func:`judge` says which methods differ from the plain sum of the losses.
* :func:`write_page` writes that as one page.

Example:
    >>> from ntkmtl.bench import study
    >>> from ntkmtl.bench.study.results import read_results
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import pandas as pd
    >>> folder = Path(mkdtemp())
    >>> table = pd.DataFrame({"age": range(60), "rooms": [i % 7 for i in range(60)]})
    >>> table["price"], table["rent"] = 3 * table["rooms"] - table["age"] / 9, 2.0 * table["rooms"]
    >>> table.to_csv(folder / "houses.csv", index=False)
    >>> text = f"""
    ... methods = ["si"]
    ... trials = 1
    ... seeds = 2
    ... [[problem]]
    ... name = "houses"
    ... problem = "table"
    ... options = {{ csv = '{folder / "houses.csv"}', targets = "price,rent" }}
    ... epochs = 1
    ... """
    >>> (folder / "houses.toml").write_text(text) > 0
    True
    >>> plan = study.read_plan(folder / "houses.toml")
    >>> study.run_study(plan, folder / "study").failures
    []
    >>> judgement = study.judge(read_results(folder / "study"))
    >>> study.write_page(judgement, folder / "study.html").name
    'study.html'
'''

from ntkmtl.bench.study.judgement import judge
from ntkmtl.bench.study.page import write_page
from ntkmtl.bench.study.plan import ProblemPlan, StudyPlan, read_plan
from ntkmtl.bench.study.runner import estimate, run_study

__all__ = ["ProblemPlan", "StudyPlan", "estimate", "judge", "read_plan", "run_study", "write_page"]
