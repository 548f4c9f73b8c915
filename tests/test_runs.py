"""Stored runs: round trip, and every way in which the files may be damaged."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from strategies import settings

from lsbook import runs
from lsbook.runs import DamagedRunError, Run

SPEC = {"experiment": "toy", "alpha": 0.1, "hidden": [4, 2], "seed": 3}
RUN = Run(
    SPEC,
    {"test_logits": np.array([[1.5, -2.0]]), "test_labels": np.array([1]), "head_weight": np.zeros((2, 0), np.float32)},
    [{"epoch": 0, "test_nll": 0.25}],
    {"device": "cpu"},
)
OTHER = SPEC | {"seed": 4}


def assert_same(a, b):
    assert (a.spec, a.history, a.provenance) == (b.spec, b.history, b.provenance)
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        assert array.shape == b.arrays[name].shape
        assert array.tobytes() == b.arrays[name].tobytes()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# --- round trip


def test_round_trip(tmp_path):
    path = runs.save(RUN, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / f"{RUN.name}.json"
    assert files(path.parent) == [f"{RUN.name}.json", f"{RUN.name}.safetensors"]
    assert_same(runs.load(SPEC, path.parent), RUN)
    assert runs.is_stored(SPEC, path.parent)


plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.text())
names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
any_array = st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@settings(max_examples=60)
@given(
    st.dictionaries(names, plain, max_size=4),
    st.dictionaries(names.filter(lambda n: n != "__metadata__"), any_array, max_size=4),
    st.lists(st.dictionaries(names, plain, max_size=3), max_size=3),
)
def test_round_trip_of_anything(tmp_path_factory, spec, arrays_, history):
    """Any text, any float (−0, infinities, subnormals), NaN in arrays, transposed and zero-dimensional arrays."""
    folder = tmp_path_factory.mktemp("runs")
    run = Run(spec | {"experiment": "toy", "seed": 0}, {n: a.T for n, a in arrays_.items()}, history, {"device": "cpu"})
    runs.save(run, folder)
    assert_same(runs.load(run.spec, folder), run)


def test_saving_again_replaces(tmp_path):
    runs.save(RUN, tmp_path)
    newer = Run(SPEC, {"test_logits": np.ones(1)}, [], {"device": "cuda"})
    runs.save(newer, tmp_path)
    assert_same(runs.load(SPEC, tmp_path), newer)
    assert len(files(tmp_path)) == 2


def test_runs_lie_side_by_side(tmp_path):
    other = Run(OTHER, {"test_logits": np.ones(1)}, [], {})
    runs.save(RUN, tmp_path)
    runs.save(other, tmp_path)
    assert_same(runs.load(SPEC, tmp_path), RUN)
    assert_same(runs.load(OTHER, tmp_path), other)


def test_logits_and_labels():
    logits, labels = RUN.logits_and_labels()
    assert logits is RUN.arrays["test_logits"]
    assert labels is RUN.arrays["test_labels"]
    with pytest.raises(KeyError, match="train_logits"):
        RUN.logits_and_labels("train")


# --- names


def test_hash_of_a_spec_never_changes():
    """A literal: were it to change, no stored run would be found again."""
    assert runs.spec_hash(SPEC) == "9c3716156f55"
    assert RUN.name == runs.run_name(SPEC) == "toy-9c3716156f55-seed3"


def test_hash_does_not_depend_on_the_order_of_keys():
    assert runs.spec_hash(dict(reversed(SPEC.items()))) == runs.spec_hash(SPEC)


@pytest.mark.parametrize("key", SPEC)
def test_hash_depends_on_every_field(key):
    changed = {"experiment": "toy2", "alpha": 0.1 + 2**-56, "hidden": [2, 4], "seed": 4}
    assert runs.spec_hash(SPEC | {key: changed[key]}) != runs.spec_hash(SPEC)
    assert runs.spec_hash({k: v for k, v in SPEC.items() if k != key}) != runs.spec_hash(SPEC)


# --- absent and damaged


def test_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert not runs.is_stored(SPEC, folder)
        with pytest.raises(FileNotFoundError) as caught:
            runs.load(SPEC, folder)
        assert str(caught.value) == f"no stored run {folder / RUN.name}.json"


def edited(**changes):
    def damage(json_path, _):
        json_path.write_text(json.dumps(json.loads(json_path.read_text()) | changes))

    return damage


def without(key):
    def damage(json_path, _):
        record = json.loads(json_path.read_text())
        del record[key]
        json_path.write_text(json.dumps(record))

    return damage


def flip_last_byte(_, arrays_path):
    data = bytearray(arrays_path.read_bytes())
    data[-1] ^= 1
    arrays_path.write_bytes(data)


DAMAGES = {
    "JSON cut": lambda j, a: j.write_bytes(j.read_bytes()[:-20]),
    "JSON empty": lambda j, a: j.write_bytes(b""),
    "JSON not UTF-8": lambda j, a: j.write_bytes(b"\xff\xfe"),
    "JSON a list": lambda j, a: j.write_text("[]"),
    "JSON a number": lambda j, a: j.write_text("3"),
    "digest gone": without("arrays_sha256"),
    "spec gone": without("spec"),
    "history gone": without("history"),
    "provenance gone": without("provenance"),
    "digest edited": edited(arrays_sha256="0" * 64),
    "spec edited": edited(spec=SPEC | {"alpha": 0.2}),
    "spec of another kind": edited(spec=None),
    "arrays cut": lambda j, a: a.write_bytes(a.read_bytes()[:-1]),
    "arrays longer": lambda j, a: a.write_bytes(a.read_bytes() + b"\0"),
    "arrays empty": lambda j, a: a.write_bytes(b""),
    "arrays changed by a bit": flip_last_byte,
    "arrays gone": lambda j, a: a.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files(tmp_path, damage):
    path = runs.save(RUN, tmp_path)
    damage(path, path.with_suffix(".safetensors"))
    with pytest.raises(DamagedRunError) as caught:
        runs.load(SPEC, tmp_path)
    assert str(path) in str(caught.value)


def test_json_gone_is_no_run(tmp_path):
    runs.save(RUN, tmp_path).unlink()
    with pytest.raises(FileNotFoundError, match="no stored run"):
        runs.load(SPEC, tmp_path)


def test_renamed_files(tmp_path):
    path = runs.save(RUN, tmp_path)
    for suffix in (".json", ".safetensors"):
        shutil.move(path.with_suffix(suffix), tmp_path / f"{runs.run_name(OTHER)}{suffix}")
    with pytest.raises(DamagedRunError, match=f"{runs.run_name(OTHER)}.json was made from another spec"):
        runs.load(OTHER, tmp_path)


# --- killed while writing


class Killed(BaseException):
    """Like KeyboardInterrupt, no Exception."""


@pytest.mark.parametrize("kill_at", [1, 2])
@pytest.mark.parametrize("kill", ["replace", "fsync"])
def test_killed_while_saving_leaves_no_half_run(tmp_path, monkeypatch, kill, kill_at):
    real, calls = getattr(os, kill), []

    def deadly(*arguments):
        calls.append(arguments)
        if len(calls) == kill_at:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(os, kill, deadly)
    with pytest.raises(Killed):
        runs.save(RUN, tmp_path)
    assert files(tmp_path) == [f"{RUN.name}.safetensors"] * (kill_at - 1)  # no JSON, no temporary file
    assert not runs.is_stored(SPEC, tmp_path)
    monkeypatch.undo()
    runs.save(RUN, tmp_path)
    assert_same(runs.load(SPEC, tmp_path), RUN)


@pytest.mark.parametrize("kill_at", [1, 2])
def test_killed_while_replacing_leaves_no_mixture(tmp_path, monkeypatch, kill_at):
    """Regression: the older JSON stood beside the newer arrays, and loading reported damage."""
    runs.save(RUN, tmp_path)
    real, calls = os.replace, []

    def deadly(*arguments):
        calls.append(arguments)
        if len(calls) == kill_at:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(os, "replace", deadly)
    with pytest.raises(Killed):
        runs.save(Run(SPEC, {"test_logits": np.ones(3)}, [], {}), tmp_path)
    assert not runs.is_stored(SPEC, tmp_path)
    assert not [name for name in files(tmp_path) if name.startswith(".")]


# --- data folder and provenance


def test_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("LSBOOK_RUNS_DATA", raising=False)
    assert (runs.data_folder() / "paper.toml").is_file()
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path))
    assert runs.data_folder() == tmp_path
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/absent: .*LSBOOK_RUNS_DATA"):
        runs.data_folder()


def test_provenance():
    made_by = runs.provenance("cpu", 1.26)
    assert made_by["device"] == "cpu"
    assert made_by["wall_seconds"] == 1.3
    assert made_by["numpy"] == np.__version__
    assert set(made_by) == {"lsbook", "code", "torch", "numpy", "python", "device", "wall_seconds"}
    assert json.loads(json.dumps(made_by)) == made_by


def test_provenance_of_a_gpu_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "NVIDIA H200"}.get)
    made_by = runs.provenance(torch.device("cuda:1"), 1)
    assert (made_by["device"], made_by["device_name"]) == ("cuda:1", "NVIDIA H200")


def test_code_digest_depends_on_every_file_and_on_nothing_else(tmp_path, monkeypatch):
    for path in Path(runs.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    real = runs.code_digest()
    assert re.fullmatch("[0-9a-f]{12}", real)
    assert runs.provenance("cpu", 1)["code"] == real
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    (tmp_path / "notes.txt").write_text("no code")
    assert runs.code_digest() == real
    with open(tmp_path / "theory.py", "a") as file:
        file.write("#")
    changed = runs.code_digest()
    (tmp_path / "theory.py").rename(tmp_path / "theories.py")
    assert len({real, changed, runs.code_digest()}) == 3
