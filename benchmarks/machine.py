"""What benchmarks share: the machine that they ran on, turns that candidates take, medians, tables."""

import os
import platform
import statistics
import time
from datetime import date
from importlib.metadata import version

from tabulate import tabulate

from lsbook.runs import cpu_name


def describe():
    """Two lines: date, processor and versions; how busy the machine is."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return (
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} cores, {platform.system()}, {versions}\n"
        f"load average over 1, 5, 15 minutes: {load}"
    )


def take_turns(candidates, turns):
    """Seconds of each call in each turn, after one turn that is not counted."""
    seconds = {name: [] for name in candidates}
    for _ in range(turns + 1):
        for name, call in candidates.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def summary(values, factor=1):
    """Median [lower quartile, upper quartile]."""
    low, middle, high = (f"{factor * value:.3g}" for value in statistics.quantiles(values, n=4))
    return f"{middle} [{low}, {high}]"


def show(title, rows, headers):
    print("", title, tabulate(list(rows), headers, tablefmt="github", disable_numparse=True), sep="\n", flush=True)
