"""Jobs: runs to be done, in an order that respects what each needs, on one engine or another.

* :mod:`~ntkmtl.bench.jobs.engine`: what a job is and how it runs, the queue, the log, and the
  protocol of an engine.
* :mod:`~ntkmtl.bench.jobs.local` and :mod:`~ntkmtl.bench.jobs.ray_engine`: the engines;
  :mod:`~ntkmtl.bench.jobs.ray_session` connects to Ray.
* :mod:`~ntkmtl.bench.jobs.reporters`: progress reporting.

A job writes only to its own folder, which it locks, and a job that is complete returns at once. So
any launcher that calls the command of a single run may take the place of an engine.
"""
