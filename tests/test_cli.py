"""The command line: exit statuses, and errors in one line."""

import runpy
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import lsbook
from lsbook import cli, notebooks


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "chapters" / "toy.ipynb"
    path.parent.mkdir()
    cells = [new_code_cell(notebooks.setup_cell()), new_code_cell("1 + 1")]
    nbformat.write(notebooks.normalise(new_notebook(cells=cells)), path)
    return path


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of the command line."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_executes_then_finds_nothing_to_do(notebook, capsys):
    """(What a kernel itself says on stderr is left out.)

    Regression: the lines went to the stdout of the time of the import, not of the call.
    """
    assert run(capsys, "notebooks", notebook)[:2] == (0, f"changed: {notebook}\n")
    assert nbformat.read(notebook, 4).cells[1].outputs[0].data["text/plain"] == "2"
    assert run(capsys, "notebooks", "--check", notebook)[:2] == (0, f"as it was: {notebook}\n")


def test_check_reports_a_change_in_its_status(notebook, capsys):
    book = nbformat.read(notebook, 4)
    book.metadata["widgets"] = {"state": {}}
    nbformat.write(book, notebook)
    before = notebook.read_bytes()
    for _ in range(2):  # regression: the first look wrote the file, so that the second found nothing
        found = run(capsys, "notebooks", "--no-run", "--check", notebook)
        assert found == (1, f"would change: {notebook}\n", "")
        assert notebook.read_bytes() == before
    assert run(capsys, "notebooks", "--no-run", notebook) == (0, f"changed: {notebook}\n", "")
    assert run(capsys, "notebooks", "--no-run", "--check", notebook) == (0, f"as it was: {notebook}\n", "")


def test_without_paths_it_takes_the_book(notebook, capsys, monkeypatch):
    monkeypatch.chdir(notebook.parents[1])
    assert run(capsys, "notebooks", "--no-run") == (0, "as it was: chapters/toy.ipynb\n", "")


def test_stamp(notebook, capsys):
    run(capsys, "notebooks", "--no-run", "--stamp", "someone/book", notebook)
    assert nbformat.read(notebook, 4).cells[0].source == notebooks.setup_cell("someone/book")
    run(capsys, "notebooks", "--no-run", notebook)
    assert nbformat.read(notebook, 4).cells[0].source == notebooks.setup_cell("")


def one_line_error(result, *words):
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("lsbook: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_errors_of_the_callers_making_take_one_line(notebook, capsys, monkeypatch, tmp_path):
    absent = tmp_path / "absent.ipynb"
    one_line_error(run(capsys, "notebooks", absent), f"no notebook {absent}")
    one_line_error(run(capsys, "notebooks", "--stamp", "no-slash", "--no-run", notebook), "owner/name", "'no-slash'")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    one_line_error(run(capsys, "notebooks"), "no notebooks below ./chapters and ./appendix")


def test_a_file_that_is_no_notebook(tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    path.write_text("not JSON")
    one_line_error(run(capsys, "notebooks", "--no-run", path))
    assert path.read_text() == "not JSON"


def test_usage(capsys):
    assert run(capsys, "--version") == (0, f"lsbook {lsbook.__version__}\n", "")
    status, out, _ = run(capsys, "--help")
    assert (status, "notebooks" in out) == (0, True)
    for wrong in ((), ("nonsense",), ("notebooks", "--nonsense")):
        status, _, err = run(capsys, *wrong)
        assert (status, "usage: lsbook" in err) == (2, True)


def test_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lsbook", "notebooks", "absent.ipynb"])
    monkeypatch.delitem(sys.modules, "lsbook.cli")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("lsbook.cli", run_name="__main__")
    assert stop.value.code == 2
