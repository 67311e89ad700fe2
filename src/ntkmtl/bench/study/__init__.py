"""Studies: methods compared on several problems with the same budget for tuning each.

* :func:`read_plan` reads what is asked for, a TOML file.
* :func:`estimate` says how long it takes.
* :func:`run_study` trains what is missing, and leaves a JSON file for each problem and method.
* :func:`judge` says which methods can be told from the plain sum of the losses.
* :func:`write_page` writes that as one page.
"""

from ntkmtl.bench.study.estimate import estimate
from ntkmtl.bench.study.judge import judge
from ntkmtl.bench.study.page import write_page
from ntkmtl.bench.study.plan import ProblemPlan, StudyPlan, read_plan
from ntkmtl.bench.study.runner import run_study

__all__ = ["ProblemPlan", "StudyPlan", "estimate", "judge", "read_plan", "run_study", "write_page"]
