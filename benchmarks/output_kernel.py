"""Time and peak memory of the largest eigenvalues of the NTK of outputs, never built.

    python benchmarks/output_kernel.py --samples 2000

A freshly initialized network of qm9-mini, its first training molecules, all 11 tasks: the largest
eigenvalue of each task's block K_ii (Eq. 8) and of the extended NTK (Eq. 9), by Lanczos on
products of one backward and one forward-mode pass. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(
    samples: int, *, chunk_size: int, count: int, threads: int, parameters: str, density: bool
) -> dict[str, Any]:
    """Return seconds, peak bytes and eigenvalues."""
    import torch

    from ntkmtl.analysis.spectrum import spectral_density, task_eigenvalues, top_eigenvalues
    from ntkmtl.bench import problems
    from ntkmtl.kernel import OutputNTKOperator

    torch.set_num_threads(threads)
    problem = problems.create("qm9-mini")
    torch.manual_seed(0)
    model = problem.model()
    batch = problem.batch("train", torch.arange(samples))
    before = peak_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    kernel = OutputNTKOperator(
        model,
        batch,
        parameters="shared" if parameters == "shared" else "all",
        names=problem.tasks,
        chunk_size=chunk_size,
    )
    ready = time.perf_counter()
    vector = torch.randn(kernel.shape[0], generator=torch.Generator().manual_seed(0))
    _ = kernel @ vector
    product = time.perf_counter()
    blocks = task_eigenvalues(kernel)[:, 0]
    tasks = time.perf_counter()
    whole = top_eigenvalues(kernel, count)
    ended = time.perf_counter()
    found: dict[str, Any] = {
        "samples": samples,
        "tasks": kernel.tasks,
        "rows": kernel.shape[0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "with_respect_to": parameters,
        "chunk_size": chunk_size,
        "threads": threads,
        "jvp": kernel.jvp,
        "dense_kernel_bytes": kernel.shape[0] ** 2 * kernel.dtype.itemsize,
        "seconds_to_start": ready - started,
        "seconds_of_one_product": product - ready,
        "seconds_of_task_eigenvalues": tasks - product,
        "seconds_of_extended_eigenvalues": ended - tasks,
        "seconds": ended - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "task_eigenvalues": dict(zip(kernel.names, blocks.tolist(), strict=True)),
        "extended_eigenvalues": whole.tolist(),
    }
    if density:
        estimate = spectral_density(kernel, steps=30, probes=4)
        found["seconds_of_density"] = time.perf_counter() - ended
        found["trace"] = list(estimate.moment(1))
        found["effective_rank"] = estimate.effective_rank()
        found["eigenvalues_above_1e-3_of_largest"] = list(
            estimate.count_above(1e-3 * float(whole[0]))
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Largest eigenvalues of the NTK of outputs.")
    parser.add_argument("--samples", type=int, default=2000, help="training molecules N")
    parser.add_argument("--chunk-size", type=int, default=250, help="molecules per pass")
    parser.add_argument("--count", type=int, default=3, help="eigenvalues of the extended NTK")
    # The network is small: a second thread has little to do and much to wait for.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parameters", choices=("all", "shared"), default="all")
    parser.add_argument("--density", action="store_true", help="estimate the whole spectrum too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    arguments = parser.parse_args(argv)
    found = measure(
        arguments.samples,
        chunk_size=arguments.chunk_size,
        count=arguments.count,
        threads=arguments.threads,
        parameters=arguments.parameters,
        density=arguments.density,
    )
    import torch

    found["machine"] = platform.machine()
    found["torch"] = torch.__version__
    found["date"] = datetime.now(timezone.utc).date().isoformat()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        if key.endswith("bytes") or key == "peak_bytes_before":
            print(f"{key:36}{value / 2**20:.0f} MiB")
        elif isinstance(value, dict):
            print(f"{key:36}{', '.join(f'{k} {v:.4g}' for k, v in value.items())}")
        elif isinstance(value, list):
            print(f"{key:36}{', '.join(f'{v:.4g}' for v in value)}")
        else:
            print(f"{key:36}{f'{value:.2f}' if isinstance(value, float) else value}")


if __name__ == "__main__":
    main()
