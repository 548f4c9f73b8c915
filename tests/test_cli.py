"""The command line: exit statuses, and errors in one line."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import lsbook
from lsbook import cli, datasets, experiments, notebooks, presets, runs, sweeps, training


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


@pytest.mark.slow
def test_smoke_runs_are_not_kept_among_the_books(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = run(capsys, "run", "smoke", "--only", "digits-fc-smoke-alpha0-")
    (place,) = tmp_path.glob("lsbook-smoke-*")
    assert result[0] == 0
    assert f"0 stored in {place}, 1 to train" in result[1]
    assert len(list(place.glob("*.json"))) == 1
    assert run(capsys, "run", "laptop", "--dry-run", "--only", "seed0")[1].count(str(runs.folder())) == 1


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
    for command in ("run", "list", "show", "data"):
        assert command in out
    for wrong in ((), ("nonsense",), ("notebooks", "--nonsense"), ("run",), ("show",), ("data",), ("data", "drop")):
        status, _, err = run(capsys, *wrong)
        assert (status, "usage: lsbook" in err) == (2, True)


# --- runs

QUICK = replace(experiments.DIGITS_FEW, epochs=2, record_epochs=(0, 2), hidden=(4,))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def spec_file(tmp_path):
    """A JSON file with the spec of a run that trains in a moment."""
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(QUICK.as_dict()))
    return path


def store(folder, **changes):
    """Store a made-up run; returns it."""
    spec = {"experiment": "toy", "preset": "laptop", "alpha": 0.1, "seed": 3, "dataset": "mnist", "epochs": 12}
    made_by = {"device": "cpu", "precision": "bfloat16", "wall_seconds": 90.0, "code": "0123456789ab"}
    history = [{"epoch": 0, "test_accuracy": 0.1}, {"epoch": 12, "test_accuracy": 0.98765}]
    run = runs.Run(spec | changes, {"test_logits": np.zeros((4, 10), np.float16)}, history, made_by)
    runs.save(run, folder)
    return run


def test_list(folder, capsys):
    first, second = store(folder), store(folder, seed=4, network="alexnet", alpha=0.0)
    status, out, err = run(capsys, "list", "--folder", folder)
    assert (status, err) == (0, "")
    header, _, *rows = out.splitlines()
    for title in (
        "run",
        "preset",
        "data",
        "network",
        "α",
        "seed",
        "epochs",
        "held out",
        "accuracy",
        "precision",
        "minutes",
    ):
        assert title in header
    assert rows[0].split() == f"{second.name} laptop mnist alexnet 0 4 12 test 0.9877 bfloat16 cpu 1.5".split()
    assert rows[1].split() == f"{first.name} laptop mnist fully_connected 0.1 3 12 test 0.9877 bfloat16 cpu 1.5".split()


def test_list_of_runs_that_noted_little(folder, capsys):
    runs.save(runs.Run({"experiment": "toy", "preset": "live", "alpha": 1e-3, "seed": 0}, {}, [], {}), folder)
    status, out, _ = run(capsys, "list", "--folder", folder)
    assert status == 0
    assert "0.001" in out


def test_list_chooses(folder, capsys):
    first, second = store(folder), store(folder, seed=4)
    for pattern in ("seed4", "*seed4*", "toy-laptop-alpha0.1-seed4-????????????"):
        out = run(capsys, "list", "--folder", folder, "--only", pattern)[1]
        assert second.name in out
        assert first.name not in out
    result = run(capsys, "list", "--folder", folder, "--only", "*seed4")  # with a wildcard it must fit the whole name
    one_line_error(result, "--only '*seed4' fits none of the 2 runs, such as", first.name)


def test_list_of_nothing(folder, capsys, monkeypatch, tmp_path):
    assert run(capsys, "list", "--folder", folder) == (0, f"no stored runs in {folder}\n", "")
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path))
    assert run(capsys, "list") == (0, f"no stored runs in {tmp_path / 'runs'}\n", "")
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path / "absent"))
    one_line_error(run(capsys, "list"), "LSBOOK_RUNS_DATA")


def test_list_names_damaged_runs_and_goes_on(folder, capsys):
    whole, damaged = store(folder), store(folder, seed=4)
    path = folder / f"{damaged.name}.json"
    path.write_text("{")
    status, out, _ = run(capsys, "list", "--folder", folder)
    assert status == 1
    assert whole.name in out
    assert f"damaged: the stored run {path} is incomplete" in out


def test_show(folder, capsys):
    stored = store(folder)
    for name in (stored.name, "toy-laptop"):
        status, out, err = run(capsys, "show", name, "--folder", folder)
        assert (status, err) == (0, "")
        assert out.startswith(f"{folder / stored.name}.json\n")
        assert json.loads(out.split("\nspec\n")[1].split("\n\n")[0]) == stored.spec
        for words in ("test_accuracy   0.98765", "code          0123456789ab", "test_logits  float16  (4, 10)"):
            assert words in out
        assert "test_accuracy   0.1\n" not in out  # the last epoch alone


def test_show_errors(folder, capsys):
    stored = store(folder)
    one_line_error(run(capsys, "show", "tay", "--folder", folder), "no stored run 'tay'", stored.name)
    store(folder, seed=4)
    one_line_error(run(capsys, "show", "toy", "--folder", folder), "2 stored runs start with 'toy'", stored.name)
    (folder / f"{stored.name}.safetensors.xz").write_bytes(b"")
    one_line_error(run(capsys, "show", stored.name, "--folder", folder), "damaged or cut off")


def test_run_trains_then_skips(folder, spec_file, capsys):
    result = run(capsys, "run", spec_file, "--folder", folder, "--device", "cpu")
    assert result == (0, f"1 runs: 0 stored in {folder}, 1 to train\nstored  {QUICK.name}\n", "")
    assert runs.load_named(QUICK.name, folder).provenance["device"] == "cpu"
    before = runs.paths(folder)[0].stat().st_mtime_ns
    result = run(capsys, "run", spec_file, "--folder", folder)
    assert result == (0, f"1 runs: 1 stored in {folder}, 0 to train\n", "")
    assert runs.paths(folder)[0].stat().st_mtime_ns == before


def test_dry_run(folder, capsys):
    specs = presets.specs("smoke")
    name = specs[1].name
    runs.save(runs.Run(specs[1].as_dict(), {}), folder)
    result = run(capsys, "run", "smoke", "--folder", folder, "--dry-run", "--device", "nonsense")
    lines = [f"{'stored' if spec.name == name else 'train '} {spec.name}" for spec in specs]
    head = f"{len(specs)} runs: 1 stored in {folder}, {len(specs) - 1} to train"
    assert result == (0, "\n".join([head, *lines, ""]), "")
    result = run(capsys, "run", "smoke", "--folder", folder, "--dry-run", "--only", name)
    assert result == (0, f"1 runs: 1 stored in {folder}, 0 to train\nstored {name}\n", "")
    assert len(runs.paths(folder)) == 1


def stopped_early(result, *words):
    """A one-line error of a command that had already said how much there is to do."""
    status, out, err = result
    assert out.count("\n") == 1
    one_line_error((status, "", err), *words)


def test_run_errors(folder, spec_file, capsys, monkeypatch):
    one_line_error(run(capsys, "run", "labtop"), "'labtop'", "did you mean 'laptop'")
    one_line_error(run(capsys, "run", "absent.json"), "absent.json")
    one_line_error(
        run(capsys, "run", "smoke", "--only", "nonsense"), "--only 'nonsense' fits none", presets.specs("smoke")[0].name
    )
    for device in ("nonsense", "cuda:99", "meta"):
        result = run(capsys, "run", spec_file, "--folder", folder, "--device", device)
        one_line_error(result, "--device", repr(device), "such as cpu")
    one_line_error(run(capsys, "run", spec_file, "--folder", folder, "--jobs", 0), "--jobs must be at least 1, got 0")
    monkeypatch.setenv("LSBOOK_DEVICE", "cuda:99")
    one_line_error(run(capsys, "run", spec_file, "--folder", folder), "LSBOOK_DEVICE", "'cuda:99'")
    assert not folder.exists()


def test_what_trains_nothing_makes_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert run(capsys, "run", "smoke", "--dry-run")[0] == 0
    one_line_error(run(capsys, "run", "smoke", "--jobs", 0), "--jobs")
    one_line_error(run(capsys, "run", "smoke", "--device", "tpu"), "--device")
    assert not list(tmp_path.iterdir())


def test_list_of_specs_is_no_spec(tmp_path, capsys):
    (tmp_path / "list.json").write_text("[1, 2]")
    one_line_error(run(capsys, "run", tmp_path / "list.json"), "list.json", "expected an object", "[1, 2]")


@pytest.mark.parametrize("history", ["abc", ["x"], [{"test_accuracy": "x"}]])
def test_list_goes_on_after_a_damaged_history(folder, capsys, history):
    store(folder, seed=0)
    path = folder / f"{store(folder, seed=1).name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"history": history}))
    status, out, err = run(capsys, "list", "--folder", folder)
    assert (status, err) == (1, "")
    assert f"damaged: the stored run {path}" in out or f"damaged: {path}" in out
    assert "seed0" in out


def test_output_that_nobody_reads_and_letters_that_are_not_there(folder):
    store(folder, seed=0)
    command = [sys.executable, "-m", "lsbook.cli", "list", "--folder", str(folder)]
    ascii_only = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ascii_only.returncode, ascii_only.stderr) == (0, b"")
    reader, writer = os.pipe()
    os.close(reader)
    unread = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (unread.returncode, unread.stderr) == (141, b"")


def test_run_with_a_scheduler_that_is_not_there(folder, spec_file, capsys, monkeypatch):
    pytest.importorskip("distributed", reason='Dask is missing: pip install "lsbook[cluster]"')
    monkeypatch.setattr(sweeps, "PATIENCE", 0.3)
    # The device is the workers' own: here it need not be there.
    scheduler = ("--scheduler", "tcp://127.0.0.1:9", "--device", "cuda:99")
    stopped_early(run(capsys, "run", spec_file, "--folder", folder, *scheduler), "no Dask scheduler", "127.0.0.1:9")


def test_failed_runs(folder, spec_file, capsys, monkeypatch):
    def fail(*_, **__):
        raise training.DeviceMemoryError("the GPU has too little memory; try batch_size 64")

    monkeypatch.setattr(experiments, "train", fail)
    status, out, err = run(capsys, "run", spec_file, "--folder", folder, "--device", "cpu")
    message = "DeviceMemoryError: the GPU has too little memory; try batch_size 64"
    assert (status, out.splitlines()[1]) == (1, f"failed  {QUICK.name}")
    assert err == f"lsbook: error: 1 of 1 runs failed:\n  {QUICK.name}: {message}\n"


def test_missing_data_are_fetched_before_anything_starts(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path / "data"))
    fetched = []

    def fetch(name, progress):
        fetched.append((name, progress))
        raise datasets.MissingDataError(f"{name} is absent and offline")

    monkeypatch.setattr(datasets, "fetch", fetch)
    result = run(capsys, "run", "laptop", "--only", "mnist-fc", "--folder", folder, "--device", "cpu")
    stopped_early(result, "mnist is absent and offline")
    assert fetched == [("mnist", False)]  # once, not once a run
    assert not folder.exists()


def test_ctrl_c(folder, spec_file, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run_all", interrupted)
    status, _, err = run(capsys, "run", spec_file, "--folder", folder, "--device", "cpu")
    message = "lsbook: stopped; finished runs are stored, the rest resumes from its checkpoint\n"
    assert (status, err) == (130, message)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_in_a_terminal_stops_all_processes_and_loses_nothing(tmp_path, folder, jobs):
    """A terminal sends SIGINT to the whole process group."""
    path = tmp_path / "slow.json"
    slow = replace(QUICK, epochs=10**6, record_epochs=())
    path.write_text(json.dumps(slow.as_dict()))
    runs.save(runs.Run(QUICK.as_dict(), {}), folder)
    command = [sys.executable, "-m", "lsbook.cli", "run", path, "--folder", folder, "--jobs", jobs, "--device", "cpu"]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **options)
    lock = folder / ".locks" / f"{slow.name}.lock"
    deadline = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("lsbook: stopped; finished runs are stored")
    with runs.lock(slow.as_dict(), folder, timeout=10):  # nobody trains it any more
        assert [entry.name for entry in runs.stored(folder)] == [QUICK.name]


# --- data sets


def test_data_list(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path))
    status, out, err = run(capsys, "data", "list")
    assert (status, err) == (0, "")
    for name in datasets.sources():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert "absent" in line
        assert str(tmp_path) in line
    assert len(run(capsys, "data", "list", "mnist")[1].splitlines()) == 3
    one_line_error(run(capsys, "data", "list", "mnits"), "'mnits'", "did you mean 'mnist'")


def test_data_list_says_how_large_a_set_is(capsys, monkeypatch):
    status = datasets.Status("mnist", "MNIST", Path("/there/mnist.npz"), True, 11_500_000)
    monkeypatch.setattr(datasets, "status", lambda name: status)
    assert run(capsys, "data", "list", "mnist")[1].splitlines()[2].split() == [
        "mnist",
        "MNIST",
        "11.5",
        "MB",
        "/there/mnist.npz",
    ]


def test_data_verify(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path))
    assert run(capsys, "data", "verify")[:2] == (0, f"no data sets in {tmp_path}: `lsbook data fetch` downloads them\n")
    one_line_error(run(capsys, "data", "verify", "mnist"), "mnist")

    def verify(name):
        if name == "cifar10":
            raise datasets.DamagedDataError("it has another digest")
        return {"train": "a" * 64, "test": "b" * 64}

    monkeypatch.setattr(datasets, "verify", verify)
    status, out, _ = run(capsys, "data", "verify", "cifar10", "mnist")
    whole = f"mnist: whole (train {'a' * 12}, test {'b' * 12})"
    assert (status, out) == (1, f"cifar10: DAMAGED: it has another digest\n{whole}\n")
    assert run(capsys, "data", "verify", "mnist")[:2] == (0, f"{whole}\n")


def test_data_fetch(capsys, monkeypatch, tmp_path):
    asked = []

    def fetch(name, force, progress):
        asked.append((name, force))
        return tmp_path / f"{name}.npz"

    monkeypatch.setattr(datasets, "fetch", fetch)
    assert run(capsys, "data", "fetch", "mnist", "--force") == (0, f"mnist: {tmp_path / 'mnist.npz'}\n", "")
    assert asked == [("mnist", True)]
    run(capsys, "data", "fetch")
    assert asked[1:] == [(name, False) for name in datasets.sources()]
    one_line_error(run(capsys, "data", "fetch", "mnits"), "'mnits'", "did you mean 'mnist'")


def test_data_fetch_without_network(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LSBOOK_OFFLINE", "1")
    one_line_error(run(capsys, "data", "fetch", "mnist"), "LSBOOK_OFFLINE", str(tmp_path / "data"))


def test_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lsbook", "notebooks", "absent.ipynb"])
    monkeypatch.delitem(sys.modules, "lsbook.cli")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("lsbook.cli", run_name="__main__")
    assert stop.value.code == 2


# --- the page on stored runs


def test_commands_of_the_page_are_understood():
    """Every command that appendix/stored_runs.md prints, and the name in its example."""
    page = (Path(__file__).parents[1] / "appendix" / "stored_runs.md").read_text()
    commands = [line.split("#")[0].split()[1:] for line in page.splitlines() if line.startswith("lsbook ")]
    assert len(commands) >= 6
    for command in commands:
        args = cli._parser().parse_args(command)
        specs = {spec.name: spec for spec in presets.find(args.what)}
        assert cli._chosen(specs, args.only)
    (name,) = re.findall(r'load_named\("(.+?)"', page)
    assert len([spec for spec in presets.specs("laptop") if spec.name.startswith(f"{name}-")]) == 1
