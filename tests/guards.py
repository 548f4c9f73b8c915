"""The rules for committed chapters. Each guard takes a notebook (or several) and returns a list of problems."""

import ast
import base64
import copy
import re
import statistics

import nbformat

from lsbook import notebooks

LONGEST_CELL, MEDIAN_CELL = 20, 8
LARGEST_IMAGE = 100_000  # bytes
SHORTEST_ALT = 30
TABLE_WITHIN = 3  # a figure's table stands at most this many code cells before or after it

FORBIDDEN = {
    "an object's address": r"<[^<>\n]*\bat 0x|\b0x[0-9a-fA-F]{6,}",
    "an object's text form": r"<Figure|\bFigure\(|<Axes|<matplotlib|<seaborn|<function|<module|<class |\bText\(\d",
    "an absolute path": r"(?<![\w.])/(home|tmp|work|root|usr|opt|Users|content|var)/|[A-Z]:\\Users|site-packages",
    "a timing": r"\d+(\.\d+)?\s?(ms|µs|μs|ns|seconds?|secs?|s elapsed|minutes?|min)\b|\b[Ww]all time|\bCPU times",
    "a library's version": r"(?i)\bpython\s*3\.\d+|\bversion\s*[:=]?\s*v?\d|\b\d+\.\d+\.\d+(\+\w+)?\b",
    "a progress bar": r"\bit/s\b|\bs/it\b|█|\d%\|",
}


def code_cells(notebook):
    """The code cells that hold something."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def place(cell):
    return f"cell {cell.source.strip().splitlines()[0][:60]!r}"


def texts(output):
    """Every text that an output stores, whatever its kind."""
    if output.output_type == "stream":
        yield output.text
    elif output.output_type == "error":
        yield "\n".join([output.ename, output.evalue, *output.traceback])
    else:
        for kind, data in output.data.items():
            if "image/" not in kind:
                yield data if isinstance(data, str) else str(data)


def images(cell):
    """(mime type, data) of every image that a cell stores."""
    for output in cell.outputs:
        for kind, data in output.get("data", {}).items():
            if "image/" in kind:
                yield kind, data


def execution_counts(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    expected = list(range(1, len(counts) + 1))
    return [] if counts == expected else [f"execution counts are {counts}, not 1 … {len(counts)}"]


def has_outputs(notebook):
    return [] if any(cell.outputs for cell in code_cells(notebook)) else ["no cell has an output"]


def setup_cell(notebook):
    first = next(iter(code_cells(notebook)), None)
    if first is None or first.source != notebooks.setup_cell(""):
        return ["the first code cell is not the unstamped set-up cell"]
    return [] if "remove-cell" in first.metadata.get("tags", []) else ["the set-up cell is not tagged remove-cell"]


def output_kinds(notebook):
    problems = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"{place(cell)}: an error output")
            if output.get("name") == "stderr":
                problems.append(f"{place(cell)}: an output on stderr")
        problems += [f"{place(cell)}: an image as {kind}" for kind, _ in images(cell) if not kind.endswith("image/png")]
    return problems


def output_texts(notebook):
    problems = []
    for cell in code_cells(notebook):
        for text in (text for output in cell.outputs for text in texts(output)):
            # BLEU means nothing without its signature, which ends with sacrebleu's version. The lock fixes that.
            text = re.sub(r"(nrefs:\S+)\|version:[\d.]+", r"\1", text)
            for name, pattern in FORBIDDEN.items():
                if found := re.search(pattern, text):
                    problems.append(f"{place(cell)}: {name} in the output: {found[0]!r}")
    return problems


def image_sizes(notebook):
    return [
        f"{place(cell)}: an image of {len(base64.b64decode(data)):,} bytes, more than {LARGEST_IMAGE:,}"
        for cell in code_cells(notebook)
        for _, data in images(cell)
        if len(base64.b64decode(data)) > LARGEST_IMAGE
    ]


def figure_metadata(notebook):
    problems = []
    for cell in code_cells(notebook):
        if not list(images(cell)):
            continue
        about = cell.metadata.get("mystnb", {})
        figure, alt = about.get("figure", {}), about.get("image", {}).get("alt", "")
        if not str(figure.get("name", "")).startswith("fig-"):
            problems.append(f"{place(cell)}: mystnb.figure.name must start with 'fig-', got {figure.get('name')!r}")
        if not str(figure.get("caption", "")).strip():
            problems.append(f"{place(cell)}: a figure without mystnb.figure.caption")
        if len(alt.strip()) < SHORTEST_ALT:
            problems.append(f"{place(cell)}: mystnb.image.alt must have {SHORTEST_ALT} characters or more, got {alt!r}")
    return problems


def unique_figure_names(books):
    """For several notebooks (path → notebook): no figure name twice."""
    seen, problems = {}, []
    for path, notebook in books.items():
        for cell in code_cells(notebook):
            name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            if name is not None and name in seen:
                problems.append(f"{path}: figure name {name!r} is also in {seen[name]}")
            seen.setdefault(name, path)
    return problems


def cell_lengths(notebook):
    lengths = [(place(cell), len(cell.source.splitlines())) for cell in code_cells(notebook)]
    problems = [f"{where}: {n} lines, more than {LONGEST_CELL}" for where, n in lengths if n > LONGEST_CELL]
    own = [len(cell.source.splitlines()) for cell in code_cells(notebook) if not notebooks.is_setup(cell)]
    if own and statistics.median(own) > MEDIAN_CELL:
        problems.append(f"the median code cell has {statistics.median(own)} lines, more than {MEDIAN_CELL}")
    return problems


def has_table(cell):
    markdown = [output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
    return any(re.search(r"^\|[-:| ]+\|\s*$", text, re.MULTILINE) for text in markdown)


def figures_have_tables(notebook):
    cells = code_cells(notebook)
    return [
        f"{place(cell)}: no table within {TABLE_WITHIN} code cells of this figure"
        for i, cell in enumerate(cells)
        if list(images(cell)) and not any(map(has_table, cells[max(0, i - TABLE_WITHIN) : i + TABLE_WITHIN + 1]))
    ]


def tables_are_shown(notebook):
    """A notebook shows the value of a cell's last line only: a table made further up is lost without a word."""
    problems = []
    for cell in code_cells(notebook):
        for statement in ast.parse(cell.source).body[:-1]:
            made = ast.unparse(statement.value) if isinstance(statement, ast.Expr) else ""
            if made.startswith(("plots.table(", "plots.table_of_rows(")):
                problems.append(f"{place(cell)}: a table that is not the last line is not shown")
    return problems


def no_semicolons(notebook):
    """A closing semicolon hides a value only in a kernel that keeps a history, and nbval's keeps none."""
    return [
        f"{place(cell)}: ends with a semicolon; write `_ = …` for a value that is not to be shown"
        for cell in code_cells(notebook)
        if cell.source.rstrip().endswith(";")
    ]


def no_todo(notebook):
    return [
        f"a Markdown cell says TODO: {cell.source[:60]!r}"
        for cell in notebook.cells
        if cell.cell_type == "markdown" and "TODO" in cell.source
    ]


def normalised(notebook):
    before = nbformat.writes(notebook)
    after = nbformat.writes(notebooks.normalise(copy.deepcopy(notebook)))
    return [] if before == after else ["not in its committed form: run `lsbook notebooks`"]


GUARDS = (
    execution_counts,
    has_outputs,
    setup_cell,
    output_kinds,
    output_texts,
    image_sizes,
    figure_metadata,
    cell_lengths,
    figures_have_tables,
    tables_are_shown,
    no_semicolons,
    no_todo,
    normalised,
)


def all_problems(notebook):
    return [problem for guard in GUARDS for problem in guard(notebook)]
