"""The house rules: who imports whom, what an import costs, how long a function may be, what has a docstring."""

import ast
import doctest
import inspect
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lsbook

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lsbook"
LONGEST_FUNCTION = 30  # lines, signature and docstring not counted


def imported_siblings(source):
    """Names of the lsbook modules that a module's source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lsbook.")}
        elif isinstance(node, ast.ImportFrom):
            module = ("lsbook." if node.level else "") + (node.module or "")
            if module.strip(".") == "lsbook":
                names |= {alias.name for alias in node.names}
            elif module.startswith("lsbook."):
                names.add(module.split(".")[1])
    return names - {"__version__"}


def imports_from_above(source, name):
    """The lsbook modules that module `name` imports although they do not stand before it."""
    return imported_siblings(source) - set(lsbook.MODULES[: lsbook.MODULES.index(name)])


def run_python(code):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_file_is_a_listed_module():
    assert sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__") == sorted(lsbook.MODULES)


@pytest.mark.parametrize("name", lsbook.MODULES)
def test_imports_only_from_below(name):
    assert imports_from_above((PACKAGE / f"{name}.py").read_text(), name) == set()


def test_theory_never_imports_targets():
    assert imported_siblings((PACKAGE / "theory.py").read_text()) <= {"checks"}


@pytest.mark.parametrize(
    "line",
    [
        "from . import targets, runs",
        "from .runs import load",
        "import lsbook.runs",
        "from lsbook import runs as r",
        "from lsbook.runs import load",
        "def f():\n    from . import runs",
    ],
)
def test_import_guard_bites(line):
    assert imports_from_above(line, "theory") >= {"runs"}
    assert imports_from_above("import torch\nfrom . import __version__, checks", "theory") == set()


def test_import_loads_nothing_heavy():
    heavy = "[m for m in ('torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'seaborn', 'pandas') if m in sys.modules]"
    assert run_python(f"import lsbook, sys; print(lsbook.__version__, {heavy})") == f"{lsbook.__version__} []"


def test_theory_works_without_torch():
    code = "import sys; from lsbook import theory; print(round(theory.optimal_gap(0.1, 10), 3), 'torch' in sys.modules)"
    assert run_python(code) == "4.511 False"


def test_import_takes_less_than_a_tenth_of_a_second():
    code = "import time; t = time.perf_counter(); import lsbook; print(time.perf_counter() - t)"
    assert statistics.median(float(run_python(code)) for _ in range(3)) < 0.1


def test_modules_load_by_name():
    assert run_python("import lsbook; print(lsbook.checks.check_num_classes(3), 'theory' in dir(lsbook))") == "3 True"


def test_unknown_module_is_named():
    with pytest.raises(
        AttributeError, match="'lsbook' has no attribute 'nonsense'; its modules are checks, files, targets"
    ):
        lsbook.nonsense  # noqa: B018


def public_objects(module):
    """(name, object) of the functions and classes that a module defines, and of the classes' own methods."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield name, thing
        if inspect.isclass(thing):
            for method_name, method in vars(thing).items():
                if inspect.isfunction(method) and not method_name.startswith("_") and method_name != "forward":
                    yield f"{name}.{method_name}", method


def lines_of_code(function):
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    return body[-1].end_lineno - body[0].lineno + 1


@pytest.mark.parametrize("name", lsbook.MODULES)
def test_public_names_have_docstrings(name):
    module = import_module(f"lsbook.{name}")
    assert module.__doc__
    own = dict(public_objects(module))
    assert own, "a module without a public name"
    # A NamedTuple or dataclass makes its own docstring, which starts with its call: that does not count.
    bare = [key for key, thing in own.items() if not thing.__doc__ or thing.__doc__.startswith(f"{key}(")]
    assert bare == []


@pytest.mark.parametrize("name", lsbook.MODULES)
def test_functions_are_short(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert {f.name: lines_of_code(f) for f in functions if lines_of_code(f) > LONGEST_FUNCTION} == {}


def test_length_guard_bites():
    long = ast.parse("def f():\n    'doc'\n" + "    x = 1\n" * (LONGEST_FUNCTION + 1)).body[0]
    assert lines_of_code(long) == LONGEST_FUNCTION + 1


def run_doctests(name):
    return doctest.testmod(import_module(f"lsbook.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize("name", lsbook.MODULES)
def test_doctests_pass(name):
    assert run_doctests(name).failed == 0


def test_there_are_doctests():
    assert run_doctests("theory").attempted >= 4
    assert run_doctests("targets").attempted >= 1
