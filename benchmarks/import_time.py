"""Time of `import lsbook` against `import torch`, each in fresh interpreters that take turns.

An interpreter times its own import, so that its start does not count. Usage: python benchmarks/import_time.py [TURNS]
"""

import statistics
import subprocess
import sys
from pathlib import Path

from machine import describe
from tabulate import tabulate

ROOT = Path(__file__).parents[1]
MODULES = ("lsbook", "lsbook.theory", "lsbook.targets", "torch")


def seconds(module):
    """Seconds that a fresh interpreter needs for one import."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)


def main(turns=7):
    times = {module: [] for module in MODULES}
    for _ in range(turns + 1):
        for module in MODULES:
            times[module].append(seconds(module))
    print(describe(), f"{turns} turns after one that is not counted", sep="\n")
    rows = []
    for module, values in times.items():
        ms = [1e3 * v for v in values[1:]]
        rows.append([f"import {module}", f"{statistics.median(ms):.1f}", f"{min(ms):.1f}", f"{max(ms):.1f}"])
    headers = ["", "median (ms)", "smallest", "largest"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
