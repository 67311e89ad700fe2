"""Asks the Python advisory database about the pinned versions, with pip-audit.

``python scripts/audit.py`` prints one line: how many packages were asked about and what is known of
them, or that the database could not be reached. Exit status: 0 none is known to be vulnerable,
1 some are, 2 it was not asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

__all__ = ["audit", "verdict"]

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"

CLEAN, VULNERABLE, NOT_ASKED = 0, 1, 2


def verdict(status: int, output: str, error: str) -> tuple[int, str]:
    """Return the exit status and the line that stand for what pip-audit said.

    Args:
        status: Its exit status; 1 for vulnerable packages and for a network out of reach alike.
        output: Its report as JSON, empty where there is none.
        error: What it wrote besides.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (error.strip().splitlines() or ["it said nothing"])[-1]
        return NOT_ASKED, f"audit: not done, the advisory database was not reached ({last[:200]})"
    skipped = [package for package in packages if "skip_reason" in package]
    asked = len(packages) - len(skipped)
    if not asked:
        return NOT_ASKED, "audit: not done, the package index in use has no advisories"
    found = [
        f"{package['name']} {package['version']}: "
        + ", ".join(
            f"{entry['id']} (mended in {', '.join(entry.get('fix_versions', [])) or 'none yet'})"
            for entry in package["vulns"]
        )
        for package in packages
        if package.get("vulns")
    ]
    more = f", {len(skipped)} could not be asked about" if skipped else ""
    if status == 0 and not found:
        return CLEAN, f"audit: {asked} packages, none with a known vulnerability{more}"
    lines = "\n".join(f"  {line}" for line in found)
    return (
        VULNERABLE,
        f"audit: {asked} packages, {len(found)} with known vulnerabilities{more}\n{lines}",
    )


def audit() -> tuple[int, str]:
    """Run pip-audit over the pins; see :func:`verdict`."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(PINS), "--no-deps", "--disable-pip"]
    found = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off", "--timeout", "15"],
        capture_output=True,
        text=True,
        check=False,
    )
    return verdict(found.returncode, found.stdout, found.stderr)


def main() -> int:
    """Print the line, return the exit status."""
    status, line = audit()
    print(line)
    return status


if __name__ == "__main__":
    sys.exit(main())
