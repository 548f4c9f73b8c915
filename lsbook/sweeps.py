"""Many independent runs: one after the other, over processes of this machine, or over a Dask cluster.

What is stored is skipped, and a run takes its lock before it trains, so that a sweep may be stopped, started again,
or started twice: two sweeps of the same runs share them. A killed worker's run is taken up by another worker.
"""

import gc
import os
import socket
import threading
import traceback
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from . import experiments, runs, training
from .checks import check_int

MOST_DEATHS = 3  # after so many killed processes the rest is trained one by one; Dask allows a run as many
PATIENCE = 5  # seconds to wait for a scheduler's answer


class SweepError(RuntimeError):
    """Some runs of a sweep failed; the others are stored. `failures`: name → message; `tracebacks`: name → text."""

    def __init__(self, failures, total, tracebacks):
        lines = "".join(f"\n  {name}: {message}" for name, message in failures.items())
        others = ", the others are stored" if len(failures) < total else ""
        super().__init__(f"{len(failures)} of {total} runs failed{others}:{lines}")
        self.failures = failures
        self.tracebacks = tracebacks


class Outcome(NamedTuple):
    """What became of one run: its name, and the message and traceback of its failure, empty for a stored run.

    busy: it was left alone, since another process trains it.
    """

    name: str
    message: str = ""
    traceback: str = ""
    busy: bool = False


# Torch's threads and its global random numbers belong to the whole process, and a Dask worker may run several tasks
# at a time in threads of one process. Here they take turns.
_turn = threading.Lock()


def _train_one(spec, wait, folder, device, train):
    """The `Outcome` of one run; any error becomes a message, so that it stops no other run.

    wait : whether to wait while another process trains it
    """
    try:
        with _turn, runs.lock(spec.as_dict(), folder, timeout=None if wait else 0):
            if not runs.is_stored(spec.as_dict(), folder):  # by now another process may have stored it
                train(spec, folder, device)
    except runs.BusyRunError:
        return Outcome(spec.name, busy=True)
    except Exception as error:
        return Outcome(spec.name, f"{type(error).__name__}: {error}", traceback.format_exc())
    return Outcome(spec.name)


def _train_in_worker(spec, threads=None, **options):
    """`_train_one` in a process that shares the screen and the cores with others."""
    os.environ["LSBOOK_PROGRESS"] = "0"
    with training.threads(threads):
        return _train_one(spec, **options)


def _parallel(specs, jobs, work):
    """The outcomes of `specs` as they come from `jobs` processes, with an equal share of the cores for each."""
    import joblib

    work = joblib.delayed(partial(work, threads=max(1, joblib.cpu_count() // jobs)))
    # A process takes one run at a time: what it has taken, no other can take over.
    parallel = joblib.Parallel(jobs, batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered")
    return parallel(work(spec) for spec in specs)


def _over_processes(specs, jobs, work):
    """Yield the outcomes of `specs` as they come from processes of this machine, also if some of these are killed.

    joblib ends all its processes when one dies (and the system then frees their locks), so the rest starts anew.
    When that has happened often, each run that is left gets its chance alone, since the neighbours of the one that
    kills are innocent, and memory may suffice for one at a time.
    """
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    left = {spec.name: spec for spec in specs}
    for _ in range(MOST_DEATHS):
        try:
            for outcome in _parallel(list(left.values()), jobs, work):
                del left[outcome.name]
                yield outcome
            return
        except TerminatedWorkerError:
            continue
    for name, spec in left.items():
        try:
            yield from _parallel([spec], jobs, work)
        except TerminatedWorkerError:
            yield Outcome(name, "its process was killed again, even with no other beside it: is memory short?")


def _listens(address):
    """Whether anything at all accepts connections at an address such as tcp://10.0.0.1:8786."""
    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), timeout=PATIENCE).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _client(address):
    """A Dask client for the scheduler at `address`. Raises ConnectionError if none answers."""
    try:
        import distributed
    except ImportError as error:
        raise ModuleNotFoundError('a cluster needs Dask: pip install "lsbook[cluster]"') from error
    client = None
    if _listens(address):  # a client that fails lives on in threads and cycles, so none is made where nobody is
        with suppress(OSError, ValueError):
            client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    if client is None:
        # Something else than a scheduler may listen. If the failed client were collected while the next one starts,
        # both would wait for one lock for ever: collect it now, and chain no exception, which would keep it.
        gc.collect()
        raise ConnectionError(
            f"no Dask scheduler answers at {address!r} after {PATIENCE} s; expected the address that `dask scheduler` "
            f"prints, such as tcp://10.0.0.1:8786"
        )
    with client:
        yield client


def _outcome(future, name):
    """The `Outcome` that a finished future of Dask holds, or one that says why it holds none."""
    if future.cancelled():
        return Outcome(name, "the connection to the scheduler was lost; start the sweep again to go on")
    error = future.exception()
    return Outcome(name, f"{type(error).__name__}: {error}") if error else future.result()


def _over_cluster(specs, address, work):
    """Yield the outcomes of `specs` as they come from a Dask cluster's workers.

    Dask's own client, not joblib's Dask backend: the scheduler knows each run as a task, so that it hands the run of
    a worker that died to another, and gives it up only when a fourth worker dies of it (Dask's setting
    ``distributed.scheduler.allowed-failures``). joblib's backend fails as a whole with its first failed batch.
    """
    with _client(address) as client:
        import distributed

        names = {client.submit(work, spec, pure=False): spec.name for spec in specs}
        for future in distributed.as_completed(names, loop=client.loop):
            yield _outcome(future, names[future])


def _round(specs, jobs, scheduler, **options):
    """Yield the outcomes of `specs` as they come, wherever they are trained."""
    if scheduler is not None:
        return _over_cluster(specs, scheduler, partial(_train_in_worker, **options))
    if jobs == 1:
        return (_train_one(spec, **options) for spec in specs)
    return _over_processes(specs, jobs, partial(_train_in_worker, **options))


def _outcomes(specs, **options):
    """Yield the outcomes of `specs` as they come; those that other processes train are waited for in the end."""
    busy = []
    for outcome in _round(specs, wait=False, **options):
        if outcome.busy:
            busy += [spec for spec in specs if spec.name == outcome.name]
        else:
            yield outcome
    if busy:
        yield from _round(busy, wait=True, **options)


def missing(specs, folder):
    """Those of `specs` that are not stored in `folder`, each once, in their order."""
    # The folder is listed, not asked for each name: a network file system may remember that a name was absent.
    there = {path.stem for path in runs.paths(folder)}
    return list({spec.name: spec for spec in specs if spec.name not in there}.values())


def _reported(outcomes, total, report):
    """All outcomes as a list, each reported as it comes."""
    done = []
    for outcome in training.progress_bar(outcomes, desc="runs", total=total):
        done.append(outcome)
        if report:
            report(outcome)
    return done


def run_all(specs, folder=None, *, device=None, jobs=1, scheduler=None, report=None, train=experiments.load_or_train):
    """Train and store every run of `specs` that `folder` does not hold yet; return the paths of the runs trained.

    Parameters
    ----------
    specs : `experiments.Spec` objects; one that appears twice is trained once
    folder : where runs are stored (default: `runs.folder`); all workers of a cluster must reach it by this path
    device : where to train (default: `training.default_device` of each process)
    jobs : number of processes on this machine, which share its cores; 1 trains in this process
    scheduler : address of a Dask scheduler; its workers then do the training, and `jobs` has no meaning
    report : function that is called with the `Outcome` of each run as it comes
    train : function (spec, folder, device) that trains and stores one run

    Raises
    ------
    TypeError, ValueError : jobs is not an int of at least 1.
    ConnectionError : no scheduler answers. ModuleNotFoundError : Dask is not installed.
    SweepError : some runs failed, after all others were stored.
    """
    check_int(jobs, "jobs", 1)
    folder = Path(folder or runs.folder()).resolve()
    todo = missing(specs, folder)
    options = {"folder": folder, "device": device, "jobs": jobs, "scheduler": scheduler, "train": train}
    outcomes = _outcomes(todo, **options) if todo else []
    failed = {outcome.name: outcome for outcome in _reported(outcomes, len(todo), report) if outcome.message}
    lost = f"trained, but not in {folder}: do all workers reach that folder?"
    failed |= {spec.name: Outcome(spec.name, lost) for spec in missing(todo, folder) if spec.name not in failed}
    if failed:
        messages, texts = ({name: getattr(f, part) for name, f in failed.items()} for part in ("message", "traceback"))
        raise SweepError(messages, len(todo), texts)
    return [folder / f"{spec.name}.json" for spec in todo]
