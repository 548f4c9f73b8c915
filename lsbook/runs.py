"""A run: what was asked for (spec), what came out (arrays, metrics, history), and what made it (provenance).

On disk a run is two files: NAME.safetensors.xz with the arrays, packed without loss, and NAME.json with the rest and
the SHA-256 of what the first holds unpacked. The JSON is written last, each file appears by atomic rename, so a run
is either whole or not there.

A process killed without warning while it stores can leave two things behind: a temporary file whose name starts with
a dot, or arrays without their JSON. Neither is a run, so neither is listed or loaded; storing the run again replaces
such arrays, and the temporary file may be deleted.
"""

import difflib
import hashlib
import json
import os
import platform
import sys
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np

from . import __version__, files
from .checks import check_choice

ARRAYS = ".safetensors.xz"
PRESETS = ("live", "smoke", "laptop", "paper")


class DamagedRunError(ValueError):
    """A stored run whose files do not fit together."""


class StoredSpec:
    """What frozen dataclasses of settings have in common: plain types, and the name of the run that they make."""

    def as_dict(self):
        """Plain types only, so that it equals its own JSON; fields at their default are left out.

        So a field that is added later, with a default that changes nothing, does not rename the runs of today.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {key: _plain(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values):
        """The spec that `as_dict` gave; ValueError for a key that is no field, or one that is missing."""
        known = [f.name for f in fields(cls)]
        for key in values:
            check_choice(key, "a spec's key", known)
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise ValueError(f"a spec must have {', '.join(missing)}, got {', '.join(values) or 'nothing'}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    @property
    def name(self):
        """File stem of its run, see `run_name`."""
        return run_name(self.as_dict())


def _plain(value):
    if isinstance(value, StoredSpec):
        return value.as_dict()
    return list(value) if isinstance(value, tuple) else value


class BusyRunError(TimeoutError):
    """Another process trains or stores this run."""


@dataclass(frozen=True)
class Run:
    """One trained network, ready for analysis.

    spec: plain dict that says all that was asked for; arrays: numpy arrays by name (logits and labels of each split,
    head_weight, head_bias, features); history: list of dicts, one a recorded epoch; provenance: what made it.
    """

    spec: dict
    arrays: dict[str, np.ndarray]
    history: list[dict] = field(default_factory=list)
    provenance: dict = field(default_factory=dict)

    @property
    def name(self):
        return run_name(self.spec)

    def logits_and_labels(self, split="test"):
        """(logits (N, K), labels (N,)) of "train" or "test", as the functions of `calibration` take them."""
        return self.arrays[f"{split}_logits"], self.arrays[f"{split}_labels"]


def spec_hash(spec):
    """First 12 hex digits of the SHA-256 of the spec as canonical JSON: the same spec, the same hash."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def run_name(spec):
    """File stem of a run: experiment, preset, α, seed, and the spec's hash, which alone tells all specs apart."""
    return f"{spec['experiment']}-{spec['preset']}-alpha{spec['alpha']:g}-seed{spec['seed']}-{spec_hash(spec)}"


def folder():
    """The book's own stored runs: `runs` in `files.data_folder`. It need not exist before the first run is stored."""
    return files.data_folder() / "runs"


@contextmanager
def lock(spec, folder, timeout=None):
    """Within a with block, be the only process that trains or stores the run of `spec` in `folder`; others wait.

    The thread that holds the lock may take it again. Raises BusyRunError after `timeout` seconds (None: wait on).
    """
    from filelock import FileLock, Timeout

    path = Path(folder) / ".locks" / f"{run_name(spec)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, is_singleton=True)  # one object a path, so that `save` may lock what its caller has locked
    try:
        # The system gives the lock up when its holder dies, however it dies. The empty file stays, and means nothing.
        held.acquire(timeout=-1 if timeout is None else timeout)
    except Timeout as error:
        raise BusyRunError(f"another process trains or stores this run: after {timeout} s it held {path}") from error
    try:
        yield
    finally:
        held.release()


def code_digest():
    """First 12 hex digits of the SHA-256 over names and contents of ``lsbook/*.py``: the same code, the same digest."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(path.name.encode() + b"\0" + path.read_bytes()).digest())
    return digest.hexdigest()[:12]


# Taken when the package is loaded: by the end of a long run, somebody may have edited the files.
_CODE = code_digest()


def cpu_name():
    """The processor's name as the system gives it, such as "AMD EPYC"; what Python knows where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _device_details(device):
    """The product name of GPU or CPU; for a CPU also the number of threads, since sums depend on it."""
    import torch

    if device.startswith("cuda"):
        return {"device_name": torch.cuda.get_device_name(device)}
    return {"device_name": cpu_name(), "threads": torch.get_num_threads()} if device == "cpu" else {}


def _peak_memory():
    """The largest memory that this process has used so far, in MB; nothing on a system that does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)}


def provenance(device, seconds):
    """Library versions, the code's digest, device (a GPU's name, a CPU's threads), wall time: what repeats a run."""
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {
        "lsbook": __version__,
        "code": _CODE,
        **packages,
        "python": platform.python_version(),
        "device": str(device),
        **_device_details(str(device)),
        **_peak_memory(),
        "wall_seconds": round(seconds, 1),
    }


def save(run, folder):
    """Store a run in `folder`, in place of an older one of its spec; returns the path of its JSON file.

    Processes that store the same run do so one after the other. Raises OSError if the disk is full.
    """
    from safetensors.numpy import save as to_bytes

    arrays = to_bytes({name: np.asarray(array, order="C") for name, array in run.arrays.items()})
    record = {
        "spec": run.spec,
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
        "history": run.history,
        "provenance": run.provenance,
    }
    path = Path(folder) / f"{run.name}.json"
    parts = {path.with_suffix(ARRAYS): files.pack(arrays), path: json.dumps(record, indent=1, sort_keys=True).encode()}
    with lock(run.spec, folder):
        staged = {}
        try:
            for place, data in parts.items():
                staged[place] = files.stage(place, data)
            path.unlink(missing_ok=True)  # all is on the disk; an older JSON must not stand beside new arrays
            for place, part in staged.items():
                os.replace(part, place)
        finally:
            for part in staged.values():
                part.unlink(missing_ok=True)
    return path


def is_stored(spec, folder):
    """Whether a run of this spec lies in `folder`."""
    return (Path(folder) / f"{run_name(spec)}.json").is_file()


@dataclass(frozen=True)
class Entry:
    """A stored run without its arrays: name, spec, history, provenance, its JSON's path, its arrays' SHA-256."""

    name: str
    spec: dict
    history: list[dict]
    provenance: dict
    path: Path
    arrays_sha256: str


def paths(folder):
    """The JSON files of the runs in `folder`, sorted by name; none if there is no such folder."""
    return sorted(path for path in Path(folder).glob("*.json") if not path.name.startswith("."))


def _row(row):
    """`row` of a history, if it is one."""
    if not isinstance(row, dict):
        raise ValueError(f"a row of its history is {row!r:.80}")
    return row


def read_entry(path):
    """The `Entry` of one JSON file, its arrays only looked for, not read.

    Raises DamagedRunError if the file is incomplete, the arrays are missing, or the spec is not the name's.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_bytes())
        parts = (dict(record["spec"]), [_row(row) for row in record["history"]], dict(record["provenance"]))
        name = run_name(record["spec"])
        path.with_suffix(ARRAYS).stat()
        entry = Entry(path.stem, *parts, path, record["arrays_sha256"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedRunError(f"the stored run {path} is incomplete ({error}); delete it and train it again") from error
    if name != path.stem:
        raise DamagedRunError(f"the stored run {path} was made from another spec than its name says")
    return entry


def stored(folder):
    """An `Entry` for every run in `folder`, sorted by name. Raises DamagedRunError for the first damaged one."""
    return [read_entry(path) for path in paths(folder)]


def _load(path):
    from safetensors.numpy import load as from_bytes

    entry = read_entry(path)
    try:
        arrays = files.unpack(path.with_suffix(ARRAYS).read_bytes())
    except ValueError as error:
        raise DamagedRunError(f"the arrays beside {path}: {error}; delete it and train it again") from error
    if hashlib.sha256(arrays).hexdigest() != entry.arrays_sha256:
        raise DamagedRunError(
            f"the arrays beside {path} do not have the SHA-256 that it names; delete it and train it again"
        )
    return Run(entry.spec, from_bytes(arrays), entry.history, entry.provenance)


def load(spec, folder):
    """The stored run of `spec`.

    Raises FileNotFoundError if there is none, DamagedRunError if its files do not fit together.
    """
    path = Path(folder) / f"{run_name(spec)}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no stored run {path}")
    return _load(path)


def load_named(name, folder):
    """The stored run of this name, or the only one whose name starts so.

    Raises FileNotFoundError if there is none (with the nearest names), ValueError if there are several, and
    DamagedRunError if its files do not fit together.
    """
    names = [path.stem for path in paths(folder)]
    found = [name] if name in names else [other for other in names if other.startswith(name)]
    if not found:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0)
        hint = f"; the nearest of {len(names)}: {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"no stored run {name!r} in {folder}{hint}")
    if len(found) > 1:
        some = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise ValueError(f"{len(found)} stored runs start with {name!r}: {some}")
    return _load(Path(folder) / f"{found[0]}.json")
