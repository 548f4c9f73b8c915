"""Stored runs: round trip, and every way in which the files may be damaged."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
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

SPEC = {"experiment": "toy", "preset": "live", "alpha": 0.1, "hidden": [4, 2], "seed": 3}
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
    """Names in `folder`; the folder of locks, in which nothing but empty files may lie, is left out."""
    locks = folder / ".locks"
    assert all(path.stat().st_size == 0 for path in locks.glob("*"))
    return sorted(path.name for path in folder.iterdir() if path != locks)


# --- round trip


def test_round_trip(tmp_path):
    path = runs.save(RUN, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / f"{RUN.name}.json"
    assert files(path.parent) == [f"{RUN.name}.json", f"{RUN.name}.safetensors.xz"]
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
    spec |= {"experiment": "toy", "preset": "live", "alpha": 0.1, "seed": 0}
    run = Run(spec, {n: a.T for n, a in arrays_.items()}, history, {"device": "cpu"})
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
    assert runs.spec_hash(SPEC) == "47412f8166b1"
    assert RUN.name == runs.run_name(SPEC) == "toy-live-alpha0.1-seed3-47412f8166b1"


def test_hash_does_not_depend_on_the_order_of_keys():
    assert runs.spec_hash(dict(reversed(SPEC.items()))) == runs.spec_hash(SPEC)


@pytest.mark.parametrize("key", SPEC)
def test_hash_depends_on_every_field(key):
    changed = {"experiment": "toy2", "preset": "smoke", "alpha": 0.1 + 2**-56, "hidden": [2, 4], "seed": 4}
    assert runs.spec_hash(SPEC | {key: changed[key]}) != runs.spec_hash(SPEC)
    assert runs.spec_hash({k: v for k, v in SPEC.items() if k != key}) != runs.spec_hash(SPEC)


@pytest.mark.parametrize("key", ["experiment", "preset", "alpha", "seed"])
def test_a_name_needs(key):
    with pytest.raises(KeyError, match=key):
        runs.run_name({k: v for k, v in SPEC.items() if k != key})


def test_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path))
    assert runs.folder() == tmp_path / "runs"
    assert runs.stored(runs.folder()) == []  # there is none yet


# --- many runs


def test_stored_lists_by_name_without_reading_arrays(tmp_path):
    for spec in (OTHER, SPEC):
        runs.save(Run(spec, RUN.arrays, RUN.history, RUN.provenance), tmp_path)
    (tmp_path / f"{RUN.name}.safetensors.xz").write_bytes(b"never read")
    first, second = runs.stored(tmp_path)
    assert (first.name, second.name) == (RUN.name, runs.run_name(OTHER))
    assert (first.spec, first.history, first.provenance) == (SPEC, RUN.history, RUN.provenance)
    assert first.path == tmp_path / f"{RUN.name}.json"


def test_stored_reports_damage(tmp_path):
    runs.save(RUN, tmp_path)
    path = runs.save(Run(OTHER, {}, [], {}), tmp_path)
    path.write_text("{")
    with pytest.raises(DamagedRunError, match=str(path)):
        runs.stored(tmp_path)
    assert runs.read_entry(runs.paths(tmp_path)[0]).name == RUN.name


def test_load_by_name_or_its_unique_beginning(tmp_path):
    for spec in (SPEC, OTHER):
        runs.save(Run(spec, RUN.arrays), tmp_path)
    assert runs.load_named(RUN.name, tmp_path).spec == SPEC
    assert runs.load_named("toy-live-alpha0.1-seed4", tmp_path).spec == OTHER
    with pytest.raises(ValueError, match=f"2 stored runs start with 'toy': {RUN.name}, {runs.run_name(OTHER)}$"):
        runs.load_named("toy", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no stored run 'tay-live' in .*; the nearest of 2: .*{RUN.name}"):
        runs.load_named("tay-live", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no stored run 'toy' in {tmp_path}/absent$"):
        runs.load_named("toy", tmp_path / "absent")


def test_a_full_name_wins_over_longer_ones(tmp_path):
    """A name may be the beginning of another one only by hand; then the full name counts."""
    path = runs.save(RUN, tmp_path)
    shutil.copy(path, tmp_path / f"{path.stem}-copy.json")
    assert_same(runs.load_named(RUN.name, tmp_path), RUN)


def test_load_named_checks_like_load(tmp_path):
    path = runs.save(RUN, tmp_path)
    flip_last_byte(path, path.with_suffix(".safetensors.xz"))
    with pytest.raises(DamagedRunError, match="damaged"):
        runs.load_named(RUN.name, tmp_path)


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
    "spec without a seed": edited(spec={"experiment": "toy", "preset": "live", "alpha": 0.1}),
    "history of another kind": edited(history=3),
    "provenance of another kind": edited(provenance=3),
    "arrays cut": lambda j, a: a.write_bytes(a.read_bytes()[:-1]),
    "arrays longer": lambda j, a: a.write_bytes(a.read_bytes() + b"\0"),
    "arrays empty": lambda j, a: a.write_bytes(b""),
    "arrays changed by a bit": flip_last_byte,
    "arrays of another run": lambda j, a: a.write_bytes(runs.files.pack(runs.files.unpack(a.read_bytes())[::-1])),
    "arrays gone": lambda j, a: a.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files(tmp_path, damage):
    path = runs.save(RUN, tmp_path)
    damage(path, path.with_suffix(".safetensors.xz"))
    with pytest.raises(DamagedRunError) as caught:
        runs.load(SPEC, tmp_path)
    assert str(path) in str(caught.value)


def test_json_gone_is_no_run(tmp_path):
    runs.save(RUN, tmp_path).unlink()
    with pytest.raises(FileNotFoundError, match="no stored run"):
        runs.load(SPEC, tmp_path)


def test_renamed_files(tmp_path):
    path = runs.save(RUN, tmp_path)
    for suffix in (".json", ".safetensors.xz"):
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
    arrays_alone = kill == "replace" and kill_at == 2
    assert files(tmp_path) == [f"{RUN.name}.safetensors.xz"] * arrays_alone  # no JSON, no temporary file
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


# The program stores one run over and over, each time with other numbers, as two machines' roundings would be.
# After its first call of os.WHERE it either kills itself or waits for a line.
STORING = """
import os, sys
import numpy as np
from lsbook import runs

folder, numbers, deed, where = sys.argv[1], range(*map(int, sys.argv[2].split())), sys.argv[3], sys.argv[4]
real, calls = getattr(os, where), []
def interrupted(*arguments):
    real(*arguments)
    calls.append(1)
    if len(calls) == 1 and deed == "kill":
        os.kill(os.getpid(), 9)
    if len(calls) == 1 and deed == "wait":
        print("waits", flush=True)
        sys.stdin.readline()
setattr(os, where, interrupted)
print("ready", flush=True)
sys.stdin.readline()
for number in numbers:
    arrays = {"test_logits": np.full(40_000, number), "head_weight": np.zeros(3)}
    runs.save(runs.Run(SPEC, arrays, [{"epoch": number}], {}), folder)
""".replace("SPEC", repr(SPEC))


def storing(folder, numbers="0 40", deed="nothing", where="replace"):
    """A process that stores runs into `folder` as soon as a line is sent to it."""
    command = [sys.executable, "-c", STORING, str(folder), numbers, deed, where]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def start(process):
    process.stdin.write("\n")
    process.stdin.flush()


def assert_absent_or_whole(folder):
    """Either no run, or one whose arrays and JSON come from the same process and round."""
    assert runs.stored(folder) == [] or len(runs.stored(folder)) == 1
    if runs.is_stored(SPEC, folder):
        run = runs.load(SPEC, folder)
        assert set(run.arrays["test_logits"]) == {run.history[0]["epoch"]}


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_process_killed_in_mid_store(tmp_path, where):
    """Dead by SIGKILL with temporary files on the disk (fsync), or with arrays but no JSON (replace)."""
    process = storing(tmp_path, deed="kill", where=where)
    process.communicate("\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    parts = [f".{RUN.name}.safetensors.xz.part"] if where == "fsync" else [f".{RUN.name}.json.part"]
    assert files(tmp_path) == parts + [f"{RUN.name}.safetensors.xz"] * (where == "replace")
    assert (runs.is_stored(SPEC, tmp_path), runs.paths(tmp_path)) == (False, [])
    with pytest.raises(FileNotFoundError, match="no stored run"):
        runs.load_named(RUN.name, tmp_path)
    runs.save(RUN, tmp_path)  # waits for no lock of the dead
    assert_same(runs.load(SPEC, tmp_path), RUN)
    assert len(files(tmp_path)) == 2  # what the dead process left is gone


def test_process_killed_at_any_moment(tmp_path):
    for moment in np.linspace(0.001, 0.06, 8):
        process = storing(tmp_path)
        start(process)
        time.sleep(moment)
        process.kill()
        process.communicate()
        assert_absent_or_whole(tmp_path)
    runs.save(RUN, tmp_path)
    assert_same(runs.load(SPEC, tmp_path), RUN)


def test_two_processes_store_the_same_run_at_once(tmp_path):
    both = [storing(tmp_path, numbers) for numbers in ("0 40", "1000 1040")]
    for process in both:
        start(process)
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert_absent_or_whole(tmp_path)
    assert files(tmp_path) == [f"{RUN.name}.json", f"{RUN.name}.safetensors.xz"]


def test_a_second_process_waits_until_the_first_has_stored(tmp_path):
    """Regression: JSON of the first beside arrays of the second, when the first was slow between its two files."""
    slow, fast = storing(tmp_path, "1 2", "wait", "replace"), storing(tmp_path, "2 3")
    start(slow)
    assert slow.stdout.readline() == "waits\n"  # its arrays are there, its JSON is not
    start(fast)
    with pytest.raises(subprocess.TimeoutExpired):
        fast.wait(0.5)
    start(slow)
    for process in (slow, fast):
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert runs.load(SPEC, tmp_path).history == [{"epoch": 2}]
    assert_absent_or_whole(tmp_path)


@pytest.mark.parametrize("full_at", [1, 2])
def test_full_disk_while_storing(tmp_path, monkeypatch, full_at):
    runs.save(RUN, tmp_path)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    suffix = {1: "safetensors.xz", 2: "json"}[full_at]
    with pytest.raises(OSError, match=f"no space left for {RUN.name}.{suffix}"):
        runs.save(Run(SPEC, {"test_logits": np.ones(3)}, [], {}), tmp_path)
    assert len(files(tmp_path)) == 2
    assert_same(runs.load(SPEC, tmp_path), RUN)  # regression: the older run was gone before the newer was written


def test_left_overs_are_no_runs(tmp_path):
    (tmp_path / ".tmpabc").write_bytes(b"half")
    (tmp_path / ".old.json").write_bytes(b"{")
    (tmp_path / f"{RUN.name}.safetensors.xz").write_bytes(b"orphan")
    assert runs.stored(tmp_path) == []
    assert not runs.is_stored(SPEC, tmp_path)
    runs.save(RUN, tmp_path)
    assert_same(runs.load(SPEC, tmp_path), RUN)


# --- one process at a time

HOLDING = """
import sys
from lsbook import runs

with runs.lock(SPEC, sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
""".replace("SPEC", repr(SPEC))


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of SPEC until a line is sent to it."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_keeps_others_out(tmp_path, holder):
    with (
        pytest.raises(runs.BusyRunError, match=rf"another process .* 0\.1 s .*/.locks/{RUN.name}\.lock"),
        runs.lock(SPEC, tmp_path, timeout=0.1),
    ):
        pytest.fail("two processes hold one lock")
    with runs.lock(OTHER, tmp_path, timeout=0):  # another run
        pass
    with runs.lock(SPEC, tmp_path / "elsewhere", timeout=0):
        pass
    start(holder)
    with runs.lock(SPEC, tmp_path, timeout=30):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    with runs.lock(SPEC, tmp_path, timeout=10):
        pass


def test_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(Killed), runs.lock(SPEC, tmp_path):
        raise Killed
    with runs.lock(SPEC, tmp_path, timeout=0):
        pass


def test_holder_may_save_and_lock_again(tmp_path, monkeypatch):
    """Also where the folder is named in another way."""
    monkeypatch.chdir(tmp_path)
    with runs.lock(SPEC, tmp_path):
        runs.save(RUN, ".")
        assert runs.is_stored(SPEC, tmp_path)
        with runs.lock(SPEC, "../" + tmp_path.name, timeout=0):
            pass


def test_lock_keeps_other_threads_out(tmp_path):
    tried = []

    def try_it():
        try:
            with runs.lock(SPEC, tmp_path, timeout=0):
                tried.append("held")
        except runs.BusyRunError:
            tried.append("kept out")

    with runs.lock(SPEC, tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join(30)
    try_it()
    assert tried == ["kept out", "held"]


# --- provenance


def test_provenance():
    made_by = runs.provenance("cpu", 1.26)
    assert made_by["device"] == "cpu"
    assert made_by["wall_seconds"] == 1.3
    assert made_by["numpy"] == np.__version__
    parts = {"lsbook", "code", "torch", "numpy", "python", "device", "device_name", "threads", "wall_seconds"}
    assert set(made_by) == parts | {"peak_memory_mb"}
    assert made_by["threads"] == torch.get_num_threads()
    assert made_by["device_name"] == runs.cpu_name() != ""
    assert 50 < made_by["peak_memory_mb"] < 100_000
    assert json.loads(json.dumps(made_by)) == made_by


def test_provenance_of_a_gpu_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "NVIDIA H200"}.get)
    made_by = runs.provenance(torch.device("cuda:1"), 1)
    assert (made_by["device"], made_by["device_name"]) == ("cuda:1", "NVIDIA H200")
    assert "threads" not in made_by


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
    assert runs.provenance("cpu", 1)["code"] == real  # of the code that was loaded, not of later edits
    (tmp_path / "theory.py").rename(tmp_path / "theories.py")
    assert len({real, changed, runs.code_digest()}) == 3
