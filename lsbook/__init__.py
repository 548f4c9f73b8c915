"""The helper package of the book on label smoothing.

Importing it costs milliseconds: each module (and torch behind it) loads when its name is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

# Bottom to top: a module imports only what stands before it (tests/test_house.py holds this).
MODULES = (
    "checks",
    "files",
    "targets",
    "alternatives",
    "theory",
    "information",
    "distillation",
    "calibration",
    "selective",
    "geometry",
    "datasets",
    "images",
    "models",
    "training",
    "teachers",
    "number_names",
    "text",
    "transformer",
    "decoding",
    "translation_metrics",
    "runs",
    "translation",
    "experiments",
    "presets",
    "sweeps",
    "claims",
    "plots",
    "projection",
    "report",
    "notebooks",
    "cli",
)

__all__ = ["MODULES", "__version__", *MODULES]


def __getattr__(name):
    if name in MODULES:
        return import_module(f"lsbook.{name}")
    raise AttributeError(f"module 'lsbook' has no attribute {name!r}; its modules are {', '.join(MODULES)}")


def __dir__():
    return sorted([*globals(), *MODULES])
