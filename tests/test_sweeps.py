"""Sweeps: every run is there in the end and none is trained twice, whatever happens to the processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lsbook import experiments, runs, sweeps, training
from lsbook.sweeps import SweepError


@dataclass(frozen=True)
class Toy:
    """As much of a spec as a sweep looks at."""

    seed: int
    experiment: str = "toy"
    preset: str = "smoke"
    alpha: float = 0.1

    as_dict = asdict

    @property
    def name(self):
        return runs.run_name(self.as_dict())


SPECS = [Toy(seed) for seed in range(5)]


def note(log, *words):
    """Append one line to a file that many processes write: O_APPEND makes a short write whole."""
    with open(log, "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def notes(log, kind):
    """The rest of each line that starts with `kind`."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1:] for line in lines if line.startswith(kind)]


def train(spec, folder, device, log, seconds=0.0):
    """A toy training, which like the real one looks again under the lock, and only then works and stores."""
    with runs.lock(spec.as_dict(), folder):
        if runs.is_stored(spec.as_dict(), folder):
            return
        note(log, "start", spec.name, os.getpid(), training.torch.get_num_threads(), training.show_progress())
        time.sleep(seconds)
        runs.save(runs.Run(spec.as_dict(), {"x": np.array([spec.seed])}, [], {"device": device}), folder)
        note(log, "stored", spec.name)


def train_or_fail(spec, folder, device, log):
    """Seed 1 fails, all others are trained."""
    if spec.seed == 1:
        raise FloatingPointError("the loss became nan in epoch 3")
    train(spec, folder, device, log)


def train_when_two_are_there(spec, folder, device, log):
    """Train, but go on only when two processes have started, or after a minute: on a busy machine one may be late."""
    train(spec, folder, device, log)
    late = time.monotonic() + 60
    while len({pid for _, pid, *_ in notes(log, "start")}) < 2 and time.monotonic() < late:
        time.sleep(0.05)


def assert_all_trained_once(specs, folder, log):
    """Every run is whole, none was stored twice, no lock is held, and nothing half-written lies about."""
    entries = runs.stored(folder)
    assert [entry.name for entry in entries] == sorted({spec.name for spec in specs})
    assert Counter(name for (name,) in notes(log, "stored")) == {entry.name: 1 for entry in entries}
    for entry in entries:
        with runs.lock(entry.spec, folder, timeout=0):
            assert runs.load_named(entry.name, folder).spec == entry.spec
    expected = {f"{entry.name}{suffix}" for entry in entries for suffix in (".json", ".safetensors.xz")}
    assert {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"} == expected


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


# --- one process, or several


@pytest.mark.parametrize("jobs", [1, 2])
def test_trains_what_is_not_stored(folder, log, jobs):
    train(SPECS[2], folder, "cpu", log)
    before = runs.paths(folder)[0].stat().st_mtime_ns
    done = sweeps.run_all([*SPECS, SPECS[0]], folder, device="cpu", jobs=jobs, train=partial(train, log=log))
    assert done == [folder / f"{SPECS[seed].name}.json" for seed in (0, 1, 3, 4)]
    assert_all_trained_once(SPECS, folder, log)
    assert (folder / f"{SPECS[2].name}.json").stat().st_mtime_ns == before
    assert runs.load_named(SPECS[4].name, folder).provenance == {"device": "cpu"}
    assert sweeps.run_all(SPECS, folder, jobs=jobs, train=None) == []  # nothing to do, so nobody asks for `train`


def test_processes_share_the_cores_and_keep_off_the_screen(folder, log, monkeypatch):
    monkeypatch.setenv("LSBOOK_PROGRESS", "1")
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    monkeypatch.setattr(training, "progress_bar", lambda items, **_: items)
    sweeps.run_all(SPECS, folder, jobs=2, train=partial(train_when_two_are_there, log=log))
    _, pids, threads, shown = zip(*notes(log, "start"), strict=True)
    assert str(os.getpid()) not in pids
    assert len(set(pids)) == 2
    assert set(threads) == {"3"}
    assert set(shown) == {"False"}


def test_alone_it_leaves_threads_and_screen_as_they_are(folder, log, monkeypatch):
    monkeypatch.setenv("LSBOOK_PROGRESS", "1")
    monkeypatch.setattr(training, "progress_bar", lambda items, **_: items)
    sweeps.run_all(SPECS[:1], folder, train=partial(train, log=log))
    ((_, pid, threads, shown),) = notes(log, "start")
    assert (pid, threads, shown) == (str(os.getpid()), str(training.torch.get_num_threads()), "True")


def test_default_folder_is_the_books(tmp_path, log, monkeypatch):
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path))
    assert sweeps.run_all(SPECS[:1], train=partial(train, log=log)) == [tmp_path / "runs" / f"{SPECS[0].name}.json"]


def test_relative_folder(tmp_path, log, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweeps.run_all(SPECS[:2], "here", jobs=2, train=partial(train, log=log))
    assert_all_trained_once(SPECS[:2], tmp_path / "here", log)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_stops_no_other_run(folder, log, jobs):
    with pytest.raises(SweepError) as caught:
        sweeps.run_all(SPECS, folder, jobs=jobs, train=partial(train_or_fail, log=log))
    message = "FloatingPointError: the loss became nan in epoch 3"
    assert caught.value.failures == {SPECS[1].name: message}
    assert str(caught.value) == f"1 of 5 runs failed, the others are stored:\n  {SPECS[1].name}: {message}"
    assert "in train_or_fail" in caught.value.tracebacks[SPECS[1].name]
    assert_all_trained_once([SPECS[seed] for seed in (0, 2, 3, 4)], folder, log)


def test_a_run_that_is_not_in_the_folder_is_a_failure(folder):
    """As when a cluster's worker writes to a disk of its own."""
    with pytest.raises(SweepError, match=f"{SPECS[0].name}: trained, but not in {folder}"):
        sweeps.run_all(SPECS[:1], folder, train=lambda spec, folder, device: None)


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_runs(folder, log):
    """Regression: each waited for the run that the other trained, so that only one of them ever worked."""
    code = (
        "import sys; from pathlib import Path; from functools import partial; from lsbook import sweeps; "
        "import test_sweeps as t; log, folder = map(Path, sys.argv[1:]); "
        "sweeps.run_all(t.SPECS, folder, train=partial(t.train, log=log, seconds=0.4))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code, str(log), str(folder)]
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    kinds = [line.split()[0] for line in log.read_text().splitlines()]
    assert ("start", "start") in zip(kinds, kinds[1:], strict=False)  # two at a time
    assert_all_trained_once(SPECS, folder, log)


def test_interrupted_sweep_goes_on_later(folder, log):
    def interrupted(spec, folder, device):
        if spec.seed == 2:
            raise KeyboardInterrupt
        train(spec, folder, device, log)

    with pytest.raises(KeyboardInterrupt):
        sweeps.run_all(SPECS, folder, train=interrupted)
    assert_all_trained_once(SPECS[:2], folder, log)
    assert len(sweeps.run_all(SPECS, folder, train=partial(train, log=log))) == 3
    assert_all_trained_once(SPECS, folder, log)


@pytest.mark.parametrize(("jobs", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_jobs_must_be_a_whole_number(folder, jobs, error):
    with pytest.raises(error, match="jobs must be"):
        sweeps.run_all(SPECS, folder, jobs=jobs)
    assert not folder.exists()


def test_threads_of_one_process_take_turns(folder, log):
    """A Dask worker with several threads would train several runs at once, and they share torch's random numbers."""
    options = {"wait": False, "folder": folder, "device": "cpu", "train": partial(train, log=log, seconds=0.1)}
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(partial(sweeps._train_one, **options), SPECS[:2]))
    assert outcomes == [sweeps.Outcome(spec.name) for spec in SPECS[:2]]
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["start", "stored"] * 2


# --- processes that die


def kill_once(log, after=1):
    """Kill the process that started the last run, as soon as more than `after` runs have started."""
    while len(notes(log, "start")) <= after:
        time.sleep(0.01)
    os.kill(int(notes(log, "start")[-1][1]), signal.SIGKILL)


@contextlib.contextmanager
def killer(log):
    """A thread that kills one worker in mid-sweep, and must have found one."""
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_once, log)
        yield
        killed.result(timeout=10)


@pytest.mark.slow
def test_a_killed_process_costs_no_run(folder, log):
    with killer(log):
        done = sweeps.run_all(SPECS, folder, jobs=2, train=partial(train, log=log, seconds=0.3))
    assert len(done) == 5
    assert len(notes(log, "start")) > 5  # the killed one's run was begun again
    assert_all_trained_once(SPECS, folder, log)


def train_or_die(spec, folder, device, log, seconds=0.0):
    """Seed 1 kills its process, as the system does with one that takes too much memory."""
    if spec.seed == 1:
        note(log, "dead", spec.name)
        os.kill(os.getpid(), signal.SIGKILL)
    train(spec, folder, device, log, seconds)


@pytest.mark.slow
def test_a_run_that_kills_its_process_is_given_up_and_no_other(folder, log):
    """Regression: neighbours of the deadly run never came to their end, and were given up with it."""
    with pytest.raises(SweepError) as caught:
        sweeps.run_all(SPECS[:3], folder, jobs=2, train=partial(train_or_die, log=log, seconds=0.3))
    message = "its process was killed again, even with no other beside it: is memory short?"
    assert caught.value.failures == {SPECS[1].name: message}
    assert len(notes(log, "dead")) == 4
    assert_all_trained_once([SPECS[0], SPECS[2]], folder, log)


# --- a cluster


@pytest.fixture(scope="module")
def cluster():
    """A real scheduler and two workers in processes of their own, which are started anew when killed."""
    distributed = pytest.importorskip("distributed", reason='Dask is missing: pip install "lsbook[cluster]"')
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options, silence_logs=50) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_cluster_with_a_worker_killed_in_mid_sweep(folder, log, cluster):
    specs = [Toy(seed) for seed in range(8)]
    train(specs[7], folder, "cpu", log)
    with killer(log):
        work = partial(train, log=log, seconds=0.4)
        done = sweeps.run_all([*specs, specs[0]], folder, scheduler=cluster.scheduler_address, train=work)
    assert done == [folder / f"{spec.name}.json" for spec in specs[:7]]
    pids = {pid for _, pid, *_ in notes(log, "start")[1:]}
    assert len(pids) >= 2
    assert str(os.getpid()) not in pids
    assert len(notes(log, "start")) > 8  # the killed one's run was begun again
    assert_all_trained_once(specs, folder, log)


REAL = [replace(experiments.DIGITS_FEW, epochs=250, record_epochs=(250,), seed=seed) for seed in range(3)]


def train_for_real(spec, folder, device, log):
    """What a sweep does by itself, with notes of its start and of what it stores."""
    store = runs.save

    def save(run, folder):
        store(run, folder)
        note(log, "stored", run.name)

    with mock.patch.object(runs, "save", save):
        note(log, "start", spec.name, os.getpid())
        experiments.load_or_train(spec, folder, device)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The runs of REAL, trained one after the other in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweeps.run_all(REAL, folder, device="cpu")
    return {spec.name: runs.load(spec.as_dict(), folder) for spec in REAL}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_networks_trained_beside_a_killed_worker_are_the_same(folder, log, cluster, undisturbed, where):
    place = {"jobs": 2} if where == "processes" else {"scheduler": cluster.scheduler_address}
    with killer(log):
        sweeps.run_all(REAL, folder, device="cpu", train=partial(train_for_real, log=log), **place)
    assert len(notes(log, "start")) > len(REAL)
    assert_all_trained_once(REAL, folder, log)
    for spec in REAL:
        run = runs.load(spec.as_dict(), folder)
        assert run.history == undisturbed[run.name].history
        for name, array in undisturbed[run.name].arrays.items():
            np.testing.assert_array_equal(run.arrays[name], array)


@pytest.mark.slow
def test_a_failure_on_a_cluster_stops_no_other_run(folder, log, cluster):
    with pytest.raises(SweepError, match=f"1 of 3 .*\n  {SPECS[1].name}: FloatingPointError: the loss"):
        sweeps.run_all(SPECS[:3], folder, scheduler=cluster.scheduler_address, train=partial(train_or_fail, log=log))
    assert_all_trained_once([SPECS[0], SPECS[2]], folder, log)


@pytest.mark.slow
def test_a_run_that_kills_workers_is_given_up(folder, log, cluster):
    with pytest.raises(SweepError) as caught:
        sweeps.run_all(SPECS[1:2], folder, scheduler=cluster.scheduler_address, train=partial(train_or_die, log=log))
    assert caught.value.failures[SPECS[1].name].startswith("KilledWorker: ")
    assert len(notes(log, "dead")) == 4


def train_and_kill(spec, folder, device, log, pid):
    """Train one run, then kill the process `pid`."""
    train(spec, folder, device, log)
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def scheduler(monkeypatch):
    """(process, address) of a scheduler with one worker, started as on a cluster, by the command line."""
    pytest.importorskip("distributed", reason='Dask is missing: pip install "lsbook[cluster]"')
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    dask = [sys.executable, "-m", "dask"]
    command = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
    command = [*dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    yield scheduler, address
    for process in (worker, scheduler):
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_scheduler_that_dies_in_mid_sweep(folder, log, monkeypatch, scheduler):
    process, address = scheduler
    monkeypatch.setattr(sweeps, "PATIENCE", 2)
    with pytest.raises(SweepError) as caught:
        sweeps.run_all(SPECS, folder, scheduler=address, train=partial(train_and_kill, log=log, pid=process.pid))
    assert "the connection to the scheduler was lost; start the sweep again" in str(caught.value)
    sweeps.run_all(SPECS, folder, train=partial(train, log=log))
    assert_all_trained_once(SPECS, folder, log)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "127.0.0.1:9", "nonsense", "http://127.0.0.1:9", ""])
def test_no_scheduler(folder, monkeypatch, address):
    pytest.importorskip("distributed", reason='Dask is missing: pip install "lsbook[cluster]"')
    monkeypatch.setattr(sweeps, "PATIENCE", 0.3)
    with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at '{address}'.*such as tcp://"):
        sweeps.run_all(SPECS, folder, scheduler=address)
    assert not folder.exists()


def test_no_client_is_made_where_nobody_listens(folder, monkeypatch):
    """Regression: collected while the next client started, a failed one waited for that one's lock, for ever.

    Clients in memory are no evidence: distributed itself keeps one for a while whose scheduler has died.
    """
    distributed = pytest.importorskip("distributed", reason='Dask is missing: pip install "lsbook[cluster]"')
    monkeypatch.setattr(sweeps, "PATIENCE", 0.3)
    made = []
    monkeypatch.setattr(distributed, "Client", lambda *_, **__: made.append(1))
    with pytest.raises(ConnectionError) as caught:
        sweeps.run_all(SPECS, folder, scheduler="tcp://127.0.0.1:9")
    assert not made
    assert caught.value.__cause__ is None  # its traceback would hold what failed


def test_without_dask(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # importing it then raises ImportError
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lsbook\[cluster\]"'):
        sweeps.run_all(SPECS, folder, scheduler="tcp://127.0.0.1:9")
