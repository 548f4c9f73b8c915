"""What the benchmarks say about the machine that they ran on."""

import os
import platform
from datetime import date
from importlib.metadata import version

from lsbook.runs import cpu_name


def describe():
    """Two lines: date, processor and versions; how busy the machine is."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return (
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} cores, {platform.system()}, {versions}\n"
        f"load average over 1, 5, 15 minutes: {load}"
    )
