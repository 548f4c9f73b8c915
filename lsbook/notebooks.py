"""Executing and normalising the chapters, so that what is committed is what a fresh run gives.

`normalise` keeps source, Markdown and outputs, and removes what differs from run to run: widget state, execution
times, kernel versions. Cell ids come from the cells' text, so running it twice changes nothing.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path

SETUP_CELL = """\
# Set-up for Google Colab. Does nothing anywhere else.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    def shell(command):
        subprocess.run(command, shell=True, check=True)

    repository = "" or input("GitHub repository of the book, as owner/name: ").strip()
    if not os.path.isdir("/content/book"):
        url = f"https://github.com/{repository}"
        shell(f"git clone --depth 1 --branch colab {url} /content/book")
    # Hold Colab's own torch and numpy at what is there while the rest installs.
    pip = f"{sys.executable} -m pip"
    shell(f"{pip} list --format=freeze | grep -E '^(torch|numpy)==' > /tmp/keep.txt")
    shell(f"{pip} install -q -c /tmp/keep.txt -e /content/book")
    sys.path.insert(0, "/content/book")
    os.chdir("/content/book/chapters")"""


def setup_cell(repository=""):
    """Source of the first code cell of every chapter, with "owner/name" written in if given.

    Raises ValueError unless repository is empty or of the form owner/name.
    """
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"repository must be of the form owner/name, got {repository!r}")
    return SETUP_CELL.replace('repository = ""', f'repository = "{repository}"')


def is_setup(cell):
    """Whether a notebook cell is the set-up cell, whatever repository stands in it."""
    return cell.cell_type == "code" and cell.source.startswith(SETUP_CELL.splitlines()[0])


def find_notebooks(root="."):
    """The book's notebooks below `root`, sorted."""
    return sorted([*Path(root).glob("chapters/*.ipynb"), *Path(root).glob("appendix/*.ipynb")])


def normalise(notebook, repository=""):
    """Change `notebook` in place to its committed form and return it."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "accelerator": "GPU",  # Colab then starts with a GPU
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen = {}
    for cell in notebook.cells:
        if is_setup(cell):
            cell.source = setup_cell(repository)
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = f"{digest}-{seen[digest]}"
        for key in ("execution", "collapsed", "scrolled", "trusted", "ExecuteTime"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            output.pop("transient", None)
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs):
    """Outputs of a cell; what it printed is one piece, however the kernel happened to cut it."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("output_type") == "stream" and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def execute(notebook, folder, timeout=600):
    """Run all cells of `notebook` in a fresh kernel whose working folder is `folder`; outputs are kept in place.

    Raises nbclient's CellExecutionError with the cell and its traceback if one fails.
    """
    from nbclient import NotebookClient

    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources)
    # The kernel's environment alone, not this process's. No progress bars in stored outputs.
    client.execute(env={**os.environ, "LSBOOK_PROGRESS": "0", "PYTHONPATH": path})
    return notebook


def _write(path, text):
    """Write a text file so that `path` is either as it was or complete, with the rights that it had."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.chmod(file.name, path.stat().st_mode)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def update(path, run=True, repository="", write=True):
    """Execute (if `run`) and normalise the notebook at `path`; if that changes it, write it (if `write`).

    Returns whether it changes.
    """
    import nbformat

    path = Path(path)
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    if run:
        execute(notebook, path.parent)
    after = nbformat.writes(normalise(notebook, repository)) + "\n"
    if write and after != before:
        _write(path, after)
    return after != before


def update_all(paths, run=True, repository="", write=True):
    """Update each notebook and print a line about it. Returns the paths that changed (or would, without `write`)."""
    changed = []
    for path in paths:
        if update(path, run, repository, write):
            changed.append(path)
        word = ("changed" if write else "would change") if path in changed else "as it was"
        print(f"{word}: {path}", flush=True)
    return changed
