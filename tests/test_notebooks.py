"""Executing and normalising notebooks, the set-up cell, what nbval sees, and the guards over the committed chapters."""

import base64
import copy
import os
import subprocess
import sys
import types
from pathlib import Path

import guards
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lsbook import notebooks

ROOT = Path(__file__).parents[1]
CHAPTERS = notebooks.find_notebooks(ROOT)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def write(path, *sources, **metadata):
    book = new_notebook(cells=[new_code_cell(source) for source in sources], metadata=metadata)
    nbformat.write(book, path)
    return path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# --- normalising


def untidy_notebook():
    output = new_output("execute_result", {"text/plain": "2"}, execution_count=7)
    cells = [new_code_cell(notebooks.setup_cell("someone/book")), new_markdown_cell("words")]
    for _ in range(2):
        metadata = {"execution": {"iopub.execute_input": "2020"}, "collapsed": True, "tags": ["hide-input"]}
        cell = new_code_cell("1 + 1", execution_count=7, metadata=metadata)
        cell.outputs = [copy.deepcopy(output)]
        cells.append(cell)
    book = new_notebook(cells=cells, metadata={"widgets": {}, "language_info": {"version": "3.99.1", "name": "python"}})
    book.cells[2].outputs[0]["transient"] = {"display_id": "x"}  # as kernels send it; no valid notebook may store it
    return book


def test_normalise_removes_what_differs_from_run_to_run():
    book = notebooks.normalise(untidy_notebook())
    assert book.metadata.language_info == {"name": "python"}
    assert book.metadata.accelerator == "GPU"
    assert "widgets" not in book.metadata
    assert book.cells[0].source == notebooks.setup_cell("")
    assert book.cells[2].metadata == {"tags": ["hide-input"]}
    assert book.cells[2].outputs == [new_output("execute_result", {"text/plain": "2"}, execution_count=7)]
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == 4
    assert ids[3].split("-")[0] == ids[2].split("-")[0]
    nbformat.validate(book)


def test_normalise_is_idempotent():
    once = nbformat.writes(notebooks.normalise(untidy_notebook()))
    assert nbformat.writes(notebooks.normalise(nbformat.reads(once, 4))) == once


def test_normalise_keeps_sources_outputs_and_figure_metadata():
    book = good_chapter()
    before = copy.deepcopy(book)
    notebooks.normalise(book)
    for old, new in zip(before.cells, book.cells, strict=True):
        assert (old.source, old.get("outputs"), old.metadata) == (new.source, new.get("outputs"), new.metadata)


# --- executing


def test_update_executes_then_changes_nothing(tmp_path):
    source = "import os\nprint(os.path.basename(os.getcwd()), os.environ['LSBOOK_PROGRESS'])"
    path = write(tmp_path / "toy.ipynb", source, "import lsbook; lsbook.__name__")
    path.chmod(0o640)
    environment = dict(os.environ)
    assert notebooks.update(path)
    book = nbformat.read(path, 4)
    assert [cell.execution_count for cell in book.cells] == [1, 2]
    assert book.cells[0].outputs[0].text == f"{tmp_path.name} 0\n"  # its own folder; no progress bars
    assert book.cells[1].outputs[0].data["text/plain"] == "'lsbook'"
    written = path.read_bytes()
    assert not notebooks.update(path)
    assert path.read_bytes() == written
    assert path.stat().st_mode & 0o777 == 0o640
    assert files(tmp_path) == ["toy.ipynb"]
    assert dict(os.environ) == environment


def test_a_failing_cell_leaves_the_file_as_it_was(tmp_path):
    path = write(tmp_path / "toy.ipynb", "print(1)", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.update(path)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["toy.ipynb"]


def test_killed_while_writing_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = write(tmp_path / "toy.ipynb", "print(1)", widgets={})
    before = path.read_bytes()

    def deadly(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", deadly)
    with pytest.raises(KeyboardInterrupt):
        notebooks.update(path, run=False)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["toy.ipynb"]  # no .part


def test_looking_writes_nothing(tmp_path, capsys):
    path = write(tmp_path / "toy.ipynb", "print(1)", widgets={})
    before = path.read_bytes()
    assert notebooks.update(path, run=False, write=False)
    assert notebooks.update_all([path], run=False, write=False) == [path]
    assert capsys.readouterr().out == f"would change: {path}\n"
    assert (path.read_bytes(), files(tmp_path)) == (before, ["toy.ipynb"])


def test_update_all_says_what_it_did(tmp_path, capsys):
    paths = [write(tmp_path / name, "1", widgets={}) for name in ("a.ipynb", "b.ipynb")]
    notebooks.update(paths[0], run=False)
    assert notebooks.update_all(paths, run=False) == [paths[1]]
    assert capsys.readouterr().out == f"as it was: {paths[0]}\nchanged: {paths[1]}\n"


def test_find_notebooks(tmp_path):
    for name in ("chapters/b.ipynb", "chapters/a.ipynb", "appendix/c.ipynb", "chapters/notes.md", "other/d.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in notebooks.find_notebooks(tmp_path)] == ["c.ipynb", "a.ipynb", "b.ipynb"]
    assert notebooks.find_notebooks(tmp_path / "other") == []


# --- the set-up cell


def run_setup_cell(monkeypatch, repository="", exists=False, answer=None):
    """What the cell does on a pretended Colab: (shell commands, folders entered)."""
    commands, folders = [], []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append((command, options)))
    monkeypatch.setattr(os, "chdir", folders.append)
    monkeypatch.setattr(os.path, "isdir", lambda _: exists)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def ask(_):
        assert answer is not None, "the cell asked for a repository although one is stamped in"
        return answer

    exec(notebooks.setup_cell(repository), {"input": ask})
    return commands, folders


def test_setup_cell_does_nothing_elsewhere(monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    for module, name in ((subprocess, "run"), (os, "chdir"), (os, "system")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("the set-up cell acted outside Colab"))
    path, before = list(sys.path), dict(os.environ)
    scope = {"input": lambda _: pytest.fail("the set-up cell asked outside Colab")}
    exec(notebooks.setup_cell("someone/book"), scope)
    assert set(scope) == {"input", "sys", "__builtins__"}
    assert (sys.path, dict(os.environ)) == (path, before)


def test_setup_cell_clones_the_stamped_repository(monkeypatch):
    commands, folders = run_setup_cell(monkeypatch, "some-one/the.book")
    clone = [command for command, _ in commands if "git clone" in command]
    assert clone == ["git clone --depth 1 --branch colab https://github.com/some-one/the.book /content/book"]
    assert folders == ["/content/book/chapters"]
    assert "/content/book" in sys.path
    assert all(options.get("check") for _, options in commands)  # a failing command stops the cell


def test_setup_cell_asks_where_nothing_is_stamped(monkeypatch):
    commands, _ = run_setup_cell(monkeypatch, answer=" me/fork \n")
    assert commands[0][0] == "git clone --depth 1 --branch colab https://github.com/me/fork /content/book"


def test_setup_cell_run_twice_clones_once(monkeypatch):
    commands, folders = run_setup_cell(monkeypatch, "someone/book", exists=True)
    assert not any("git clone" in command for command, _ in commands)
    assert folders == ["/content/book/chapters"]


def test_setup_cell_keeps_torch_and_numpy_of_colab(monkeypatch):
    """They are named once: where the versions at hand are written into the constraints that pip then obeys."""
    commands, _ = run_setup_cell(monkeypatch, "someone/book")
    installs = [command for command, _ in commands if "pip install" in command]
    assert len(installs) == 1
    assert not any(name in installs[0] for name in ("torch", "numpy", "requirements"))
    naming = [command for command, _ in commands if "torch" in command or "numpy" in command]
    assert len(naming) == 1
    pip = f"{sys.executable} -m pip"  # the kernel's own, whatever stands first on the path
    assert naming[0].startswith(f"{pip} list --format=freeze | grep -E '^(torch|numpy)=='")
    constraints = naming[0].split("> ")[1]
    assert installs[0].startswith(f"{pip} install -q -c {constraints} ")
    assert commands.index((naming[0], {"shell": True, "check": True})) < commands.index(
        (installs[0], {"shell": True, "check": True})
    )


def test_setup_cell_is_short_and_the_same_but_for_the_repository():
    plain, stamped = notebooks.setup_cell(), notebooks.setup_cell("a/b")
    assert len(plain.splitlines()) <= 20
    assert max(map(len, plain.splitlines())) <= 88
    different = [(old, new) for old, new in zip(plain.splitlines(), stamped.splitlines(), strict=True) if old != new]
    assert different == [(different[0][0], different[0][0].replace('""', '"a/b"', 1))]
    assert notebooks.is_setup(new_code_cell(plain))
    assert notebooks.is_setup(new_code_cell(stamped))
    assert not notebooks.is_setup(new_code_cell("import sys"))
    assert not notebooks.is_setup(new_markdown_cell(plain))


@pytest.mark.parametrize(
    "repository", ["book", "a/b/c", "a b/c", "https://github.com/a/b", 'a/b"; import os', "a/b\n", "/b"]
)
def test_bad_repository(repository):
    with pytest.raises(ValueError) as caught:
        notebooks.setup_cell(repository)
    assert str(caught.value) == f"repository must be of the form owner/name, got {repository!r}"


# --- nbval


def test_nbval_sees_a_changed_digit(tmp_path):
    """The stored output 0.0625 of one copy becomes 0.0635: that cell fails, and nothing else does."""
    good = write(tmp_path / "good.ipynb", "x = 1 / 16", "print(x)\nprint('end')", "x")
    notebooks.update(good)
    text = good.read_text()
    assert text.count("0.0625\\n") == 1
    (tmp_path / "altered.ipynb").write_text(text.replace("0.0625\\n", "0.0635\\n"))
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-v", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "altered.ipynb", "good.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1, done.stdout
    assert "altered.ipynb::Cell 1" in failed[0]
    assert "1 failed, 5 passed" in done.stdout
    assert "0.0635" in done.stdout


# --- the guards over the committed chapters


def test_there_are_chapters():
    assert CHAPTERS, f"no notebooks below {ROOT}/chapters and {ROOT}/appendix"


@pytest.fixture(scope="module")
def books():
    return {path.name: nbformat.read(path, 4) for path in CHAPTERS}


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(books, path, guard):
    assert guard(books[path.name]) == []


def test_chapter_files_are_in_their_written_form():
    """Byte for byte what `lsbook notebooks` writes, so that no editor's layout makes a difference."""
    changed = [path.name for path in CHAPTERS if path.read_text() != nbformat.writes(nbformat.read(path, 4)) + "\n"]
    assert changed == []


def test_figure_names_are_unique_across_the_book(books):
    assert guards.unique_figure_names(books) == []


# --- the guards bite

CAPTIONED = {
    "mystnb": {
        "figure": {"name": "fig-toy", "caption": "A pixel."},
        "image": {"alt": "A single pixel, drawn to test the guards."},
    }
}


def good_chapter():
    """A small chapter that no guard finds fault with."""
    figure = new_output("display_data", {"image/png": PIXEL, "text/plain": "[figure: pixel]"})
    table = new_output(
        "execute_result", {"text/markdown": "| a |\n|--:|\n| 1 |", "text/plain": "  a\n  1"}, execution_count=3
    )
    book = new_notebook(
        cells=[
            new_markdown_cell("# Title"),
            new_code_cell(notebooks.setup_cell(), execution_count=1, metadata={"tags": ["remove-cell"]}),
            new_code_cell("draw()", execution_count=2, outputs=[figure], metadata=CAPTIONED),
            new_code_cell("show(table)", execution_count=3, outputs=[table]),
            new_code_cell("print('loss 0.25')", execution_count=4, outputs=[new_output("stream", text="loss 0.25\n")]),
            new_code_cell(""),
        ]
    )
    return notebooks.normalise(copy.deepcopy(book))


def change(cell=None, **changes):
    def mutate(book):
        target = book if cell is None else book.cells[cell]
        for key, value in changes.items():
            target[key] = value

    return mutate


def printed(text):
    return lambda book: book.cells[4].outputs[0].update(text=text)


def figure_says(text):
    return lambda book: book.cells[2].outputs[0].data.update({"text/plain": text})


def about_figure(part, **changes):
    return lambda book: book.cells[2].metadata.mystnb[part].update(changes)


def drop_table(book):
    del book.cells[3].outputs[0].data["text/markdown"]


def separate_table(book):
    book.cells[3:3] = [new_code_cell(f"x = {n}") for n in range(3)]


def no_outputs(book):
    for cell in book.cells:
        if "outputs" in cell:
            cell.outputs = []


MUTATIONS = {
    "count missing": ("execution_counts", change(3, execution_count=None), "execution counts are [1, 2, None, 4]"),
    "counts out of order": ("execution_counts", change(3, execution_count=9), "execution counts are [1, 2, 9, 4]"),
    "no outputs": ("has_outputs", no_outputs, "no cell has an output"),
    "set-up cell edited": (
        "setup_cell",
        change(1, source=notebooks.setup_cell() + "\nprint()"),
        "the first code cell is not the unstamped set-up cell",
    ),
    "set-up cell stamped": (
        "setup_cell",
        change(1, source=notebooks.setup_cell("a/b")),
        "not the unstamped set-up cell",
    ),
    "set-up cell gone": ("setup_cell", lambda book: book.cells.pop(1), "not the unstamped set-up cell"),
    "set-up cell shown": ("setup_cell", change(1, metadata={}), "the set-up cell is not tagged remove-cell"),
    "stderr": ("output_kinds", lambda book: book.cells[4].outputs[0].update(name="stderr"), "an output on stderr"),
    "error": (
        "output_kinds",
        change(4, outputs=[new_output("error", ename="E", evalue="v", traceback=[])]),
        "an error output",
    ),
    "SVG": (
        "output_kinds",
        lambda book: book.cells[2].outputs[0].data.update({"image/svg+xml": "<svg/>"}),
        "an image as image/svg+xml",
    ),
    "glued SVG": (
        "output_kinds",
        lambda book: book.cells[2].outputs[0].data.update({"application/papermill.record/image/svg+xml": "<svg/>"}),
        "an image as application/papermill.record/image/svg+xml",
    ),
    "object": (
        "output_texts",
        printed("<function f at 0x7f00>"),
        "an object's address in the output: '<function f at 0x'",
    ),
    "bare address": ("output_texts", printed("id 0x7f1234567890"), "an object's address"),
    "figure": ("output_texts", figure_says("<Figure size 640x480 with 1 Axes>"), "an object's text form"),
    "printed figure": ("output_texts", figure_says("Figure(640x380)"), "an object's text form"),
    "axes": ("output_texts", printed("<Axes: title={'center': 'x'}>"), "an object's text form"),
    "text object": ("output_texts", printed("Text(0.5, 1.0, 'x')"), "an object's text form"),
    "home": ("output_texts", printed("saved to /home/me/x"), "an absolute path in the output: '/home/'"),
    "tmp": ("output_texts", printed("/tmp/x"), "an absolute path"),
    "work": ("output_texts", printed("File /work/main/x.py"), "an absolute path"),
    "macOS": ("output_texts", printed("'/Users/me/x'"), "an absolute path"),
    "Windows": ("output_texts", printed("C:\\Users\\me"), "an absolute path"),
    "site-packages": ("output_texts", printed("lib/site-packages/torch"), "an absolute path"),
    "milliseconds": ("output_texts", printed("took 12.5 ms"), "a timing in the output: '12.5 ms'"),
    "microseconds": ("output_texts", printed("12µs per loop"), "a timing"),
    "seconds": ("output_texts", printed("in 3 seconds"), "a timing"),
    "elapsed": ("output_texts", printed("0.3 s elapsed"), "a timing"),
    "torch version": ("output_texts", printed("2.13.0+cpu"), "a library's version in the output: '2.13.0+cpu'"),
    "Python's version": ("output_texts", printed("Python 3.12"), "a library's version"),
    "named version": ("output_texts", printed("torch version: 2"), "a library's version"),
    "tqdm": ("output_texts", printed(" 40%|████      | 2/5 [00:01, 3.1it/s]"), "a progress bar"),
    "tqdm in ASCII": ("output_texts", printed("40%|###  |"), "a progress bar"),
    "path in HTML": (
        "output_texts",
        lambda book: book.cells[3].outputs[0].data.update({"text/html": "<a href='/home/me'>"}),
        "an absolute path",
    ),
    "glued timing": (
        "output_texts",
        lambda book: book.cells[3].outputs[0].data.update({"application/papermill.record/text/plain": "'5 ms'"}),
        "a timing",
    ),
    "large image": (
        "image_sizes",
        lambda book: book.cells[2].outputs[0].data.update({"image/png": base64.b64encode(bytes(100_001)).decode()}),
        "an image of 100,001 bytes, more than 100,000",
    ),
    "no figure metadata": (
        "figure_metadata",
        change(2, metadata={}),
        "mystnb.figure.name must start with 'fig-', got None",
    ),
    "figure name": ("figure_metadata", about_figure("figure", name="toy"), "must start with 'fig-', got 'toy'"),
    "caption": ("figure_metadata", about_figure("figure", caption=" "), "a figure without mystnb.figure.caption"),
    "alt": (
        "figure_metadata",
        about_figure("image", alt="A figure."),
        "must have 30 characters or more, got 'A figure.'",
    ),
    "long cell": ("cell_lengths", change(4, source="x = 1\n" * 21), "21 lines, more than 20"),
    "long cell that starts like a later one": (
        "cell_lengths",
        lambda book: [book.cells[3 + k].update(source="x = 1\n" * lines) for k, lines in enumerate((21, 2))],
        "21 lines, more than 20",
    ),
    "long cells": (
        "cell_lengths",
        lambda book: [cell.update(source="x = 1\n" * 9) for cell in book.cells[2:5]],
        "the median code cell has 9 lines, more than 8",
    ),
    "no table": ("figures_have_tables", drop_table, "no table within 3 code cells of this figure"),
    "table too far": ("figures_have_tables", separate_table, "no table within 3 code cells of this figure"),
    "table lost": (
        "tables_are_shown",
        change(4, source="plots.table({})\nprint(1)"),
        "a table that is not the last line",
    ),
    "rows lost": ("tables_are_shown", change(4, source="plots.table_of_rows(a, b)\nx = 1"), "is not shown"),
    "semicolon": ("no_semicolons", change(3, source="1 + 1;"), "ends with a semicolon"),
    "todo": ("no_todo", change(0, source="# TODO"), "a Markdown cell says TODO"),
    "kernel version": (
        "normalised",
        lambda book: book.metadata.language_info.update(version="3.11.9"),
        "not in its committed form: run `lsbook notebooks`",
    ),
    "cell id": ("normalised", change(3, id="abc"), "not in its committed form"),
    "widget state": ("normalised", lambda book: book.metadata.update(widgets={}), "not in its committed form"),
}


def test_the_good_chapter_is_good():
    assert guards.all_problems(good_chapter()) == []
    assert guards.unique_figure_names({"a": good_chapter()}) == []


@pytest.mark.parametrize(("guard", "mutate", "message"), MUTATIONS.values(), ids=MUTATIONS)
def test_guards_bite(guard, mutate, message):
    book = good_chapter()
    mutate(book)
    problems = getattr(guards, guard)(book)
    assert len(problems) >= 1
    assert message in problems[0]


def test_every_guard_is_shown_to_bite():
    assert {guard for guard, _, _ in MUTATIONS.values()} == {guard.__name__ for guard in guards.GUARDS}


def test_a_figure_name_used_twice_is_seen():
    twice = good_chapter()
    twice.cells.append(copy.deepcopy(twice.cells[2]))
    assert guards.unique_figure_names({"a": twice}) == ["a: figure name 'fig-toy' is also in a"]
    assert guards.unique_figure_names({"a": good_chapter(), "b": good_chapter()}) == [
        "b: figure name 'fig-toy' is also in a"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "loss 2.303 nats, minimum 0.5",
        "10 msteps and 3 secondary minima",
        "1/2 and 0.1/0.2 and a/home",
        "K = 32000, α = 0.1: 0.10 [0.09, 0.11]",
        "0x is no address; 100 % of 5",
        "torch agrees with numpy: 0.25",
        "BLEU 35.1, nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:2.6.0",
    ],
)
def test_innocent_output_passes(text):
    book = good_chapter()
    printed(text)(book)
    assert guards.all_problems(book) == []


def test_what_a_cell_prints_is_one_piece():
    """Regression: a kernel cut one print in two now and then, and the chapter seemed to have changed."""
    cell = new_code_cell("print(1)", execution_count=1)
    parts = [("stdout", "1\n"), ("stdout", "2"), ("stderr", "e"), ("stdout", "3"), ("stdout", "4")]
    cell.outputs = [new_output("stream", name=name, text=text) for name, text in parts]
    book = notebooks.normalise(new_notebook(cells=[cell]))
    found = [(output.name, output.text) for output in book.cells[0].outputs]
    assert found == [("stdout", "1\n2"), ("stderr", "e"), ("stdout", "34")]
