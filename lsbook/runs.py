"""A run: what was asked for (spec), what came out (arrays, metrics, history), and what made it (provenance).

On disk a run is two files: NAME.safetensors with the arrays, and NAME.json with the rest and the arrays' SHA-256.
The JSON is written last, each file appears by atomic rename, so a run is either whole or not there.
"""

import hashlib
import json
import os
import platform
import tempfile
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from . import __version__


class DamagedRunError(ValueError):
    """A stored run whose files do not fit together."""


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
    """File stem of a run: experiment, hash of the spec, seed."""
    return f"{spec['experiment']}-{spec_hash(spec)}-seed{spec['seed']}"


def data_folder():
    """Folder `data` of the checkout, or LSBOOK_RUNS_DATA where that is set. Raises FileNotFoundError if absent."""
    folder = Path(os.environ.get("LSBOOK_RUNS_DATA") or Path(__file__).parents[1] / "data")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: run from a checkout of the book, or set LSBOOK_RUNS_DATA to its 'data' folder"
        )
    return folder


def code_digest():
    """First 12 hex digits of the SHA-256 over names and contents of ``lsbook/*.py``: the same code, the same digest."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(path.name.encode() + b"\0" + path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _device_name(device):
    """The GPU's product name, such as "NVIDIA H200"; for other devices nothing."""
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"device_name": torch.cuda.get_device_name(device)}


def provenance(device, seconds):
    """Library versions, the code's digest, device (with a GPU's name), wall time: what it takes to repeat a run."""
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {
        "lsbook": __version__,
        "code": code_digest(),
        **packages,
        "python": platform.python_version(),
        "device": str(device),
        **_device_name(str(device)),
        "wall_seconds": round(seconds, 1),
    }


def _write(path, data):
    """Write bytes so that `path` is either absent (or old) or complete."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # a temporary file is for its maker's eyes only; a run is for the whole lab
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def save(run, folder):
    """Store a run in `folder`; returns the path of its JSON file."""
    from safetensors.numpy import save as to_bytes

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = to_bytes({name: np.asarray(array, order="C") for name, array in run.arrays.items()})
    record = {
        "spec": run.spec,
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
        "history": run.history,
        "provenance": run.provenance,
    }
    path = folder / f"{run.name}.json"
    path.unlink(missing_ok=True)  # an older run of this name must not stand beside new arrays
    _write(path.with_suffix(".safetensors"), arrays)
    _write(path, json.dumps(record, indent=1, sort_keys=True).encode())
    return path


def is_stored(spec, folder):
    """Whether a run of this spec lies in `folder`."""
    return (Path(folder) / f"{run_name(spec)}.json").is_file()


def load(spec, folder):
    """The stored run of `spec`.

    Raises FileNotFoundError if there is none, DamagedRunError if its files do not fit together.
    """
    from safetensors.numpy import load as from_bytes

    path = Path(folder) / f"{run_name(spec)}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no stored run {path}")
    try:
        record = json.loads(path.read_bytes())
        arrays = path.with_suffix(".safetensors").read_bytes()
        digest, run = record["arrays_sha256"], Run(record["spec"], {}, record["history"], record["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedRunError(f"the stored run {path} is incomplete ({error}); delete it and train it again") from error
    if hashlib.sha256(arrays).hexdigest() != digest:
        raise DamagedRunError(
            f"the arrays beside {path} do not have the SHA-256 that it names; delete it and train it again"
        )
    if run.spec != spec:
        raise DamagedRunError(f"the stored run {path} was made from another spec than its name says")
    return replace(run, arrays=from_bytes(arrays))
