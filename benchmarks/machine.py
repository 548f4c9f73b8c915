"""What the benchmarks say about the machine that they ran on."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path


def cpu_name():
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe():
    """Two lines: date, processor and versions; how busy the machine is."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return (
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} cores, {platform.system()}, {versions}\n"
        f"load average over 1, 5, 15 minutes: {load}"
    )
