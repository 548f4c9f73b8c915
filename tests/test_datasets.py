"""Data sets: made-up ones in the true formats, from a real server on this machine; the real ones where they lie."""

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsbook import datasets, files

IMAGES = {"train": 10, "test": 4}
PAIRS = {
    "train": [("A dog.", "Ein Hund."), ("Two\u2028men\x85run.", "Zwei Männer\x0blaufen."), ("A dog.", "Ein Hund.")],
    "val": [("", "Leer."), ("One.", "Eins.")],
}


# --- made-up sets ---


def make_images(shape, num_classes, seed):
    """{split: (images, labels)} with one example twice, so that digests tie."""
    rng = np.random.default_rng(seed)
    data = {}
    for split, count in IMAGES.items():
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = rng.integers(0, num_classes, count, dtype=np.uint8)
        images[1], labels[1] = images[0], labels[0]
        data[split] = images, labels
    return data


def slow_digest(examples):
    """The content digest of a list of byte strings, by the plainest loop."""
    total = hashlib.sha256()
    for digest in sorted(hashlib.sha256(example).digest() for example in examples):
        total.update(digest)
    return total.hexdigest()


def image_digests(data):
    return {
        split: slow_digest([image.tobytes() + bytes([label]) for image, label in zip(*part, strict=True)])
        for split, part in data.items()
    }


def idx(array):
    return struct.pack(f">{1 + array.ndim}i", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def tar_gz(members):
    """A .tar.gz of (name, bytes) or (TarInfo, bytes)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for info, content in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def cifar_records(data, label_bytes):
    """Records of each split: a superclass if there are two label bytes, the class, then channel × row × column."""
    return {
        split: [
            bytes([7] * (label_bytes - 1) + [label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(*part, strict=True)
        ]
        for split, part in data.items()
    }


def cifar_members(records):
    """Two files of five training records, one of four test records."""
    batches = {"train": [records["train"][:5], records["train"][5:]], "test": [records["test"]]}
    return [(f"bin/{split}_{k}.bin", b"".join(b)) for split in batches for k, b in enumerate(batches[split])]


def image_source(format, shape, num_classes, digests, **more):
    names = [f"class {k}" for k in range(num_classes)]
    common = {"title": "Made up", "kind": "images", "format": format, "shape": shape, "class_names": names}
    return common | {"examples": IMAGES, "digests": digests, **more}


class World:
    """The sources, what their archives are, and a folder for each test."""

    def __init__(self, folder):
        self.toml, self.data = folder / "data" / "datasets.toml", folder / "sets"
        self.toml.parent.mkdir()
        self.contents = {}
        mnist = make_images((2, 3), 10, 0)
        parts = [array for part in mnist.values() for array in part]
        names = ["train-images.gz", "train-labels.gz", "test-images.gz", "test-labels.gz"]
        self.archives = {name: gzip.compress(idx(array)) for name, array in zip(names, parts, strict=True)}
        self.sources = {
            "mnist": image_source("idx", [2, 3], 10, image_digests(mnist), files=names, record_bytes=7),
        }
        self.contents["mnist"] = mnist
        self.add_cifar("cifar10", 10, 1)
        self.add_cifar("cifar100", 100, 2)
        self.sources["cifar100"] |= {"superclasses": ["even", "odd"], "superclass_of": [k % 2 for k in range(100)]}
        self.add_sentences()

    def add_cifar(self, name, num_classes, label_bytes):
        data = make_images((2, 2, 3), num_classes, label_bytes)
        self.contents[name] = data
        self.archives[f"{name}.tar.gz"] = tar_gz(cifar_members(cifar_records(data, label_bytes)))
        members = {"train": ["bin/train_0.bin", "bin/train_1.bin"], "test": ["bin/test_0.bin"]}
        more = {"files": [f"{name}.tar.gz"], "record_bytes": 12 + label_bytes, "members": members}
        self.sources[name] = image_source("cifar", [2, 2, 3], num_classes, image_digests(data), **more)

    def add_sentences(self):
        names = [f"{split}.{language}.gz" for split in PAIRS for language in ("en", "de")]
        for split, pairs in PAIRS.items():
            for side, language in enumerate(("en", "de")):
                text = "".join(pair[side] + "\n" for pair in pairs)
                self.archives[f"{split}.{language}.gz"] = gzip.compress(text.encode())
        digests = {split: slow_digest([f"{e}\n{g}".encode() for e, g in pairs]) for split, pairs in PAIRS.items()}
        self.sources["multi30k"] = {"title": "Pairs", "kind": "sentences", "format": "sentences", "files": names}
        self.sources["multi30k"] |= {"examples": {split: len(pairs) for split, pairs in PAIRS.items()}}
        self.sources["multi30k"] |= {"digests": digests, "record_bytes": 800}

    def write(self, *servers):
        """Write datasets.toml, every set to be had from `servers`."""
        lines = []
        for name, source in self.sources.items():
            lines.append(f"[{name}]")
            for key, value in (source | {"servers": list(servers)}).items():
                inline = isinstance(value, dict)
                pairs = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) if inline else ""
                lines.append(f"{key} = " + (f"{{ {pairs} }}" if inline else json.dumps(value)))
        self.toml.write_text("\n".join(lines))

    def store(self, name, **changes):
        """Put NAME.npz into the folder by hand, some arrays changed (None: left out)."""
        arrays = {}
        for split, (images, labels) in self.contents[name].items():
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        arrays = {key: array for key, array in (arrays | changes).items() if array is not None}
        self.data.mkdir(exist_ok=True)
        np.savez(self.data / f"{name}.npz", **arrays)
        return self.data / f"{name}.npz"

    def finished(self):
        """Files that a loader would read, and stray ones: all but the lock and what waits to be gone on with."""
        found = [path.relative_to(self.data) for path in self.data.rglob("*") if path.is_file()]
        return sorted(str(p) for p in found if p.suffix != ".lock" and not p.parts[0].endswith(".part"))

    def unfinished(self):
        """Files of downloads that are not done."""
        return sorted(path for path in self.data.glob("*.part/*/*"))


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path)
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(world.toml.parent))
    monkeypatch.setenv("LSBOOK_DATA", str(world.data))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("LSBOOK_OFFLINE", raising=False)
    world.write("http://127.0.0.1:9/")  # nobody listens there
    return world


# --- a server that can misbehave ---


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, path = self.server, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        server.log.append((path, wanted))
        if path not in server.files:
            return self.send_error(404)
        content, start = server.files[path], 0
        if wanted and not server.ignores_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) - server.shift
            if start >= len(content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        return self.answer(206 if start else 200, content[start:], headers)

    def answer(self, status, content, headers):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        allowance = self.server.drops.pop(0) if self.server.drops else None
        self.wfile.write(content[:allowance])
        self.wfile.flush()
        if allowance is not None and self.server.hangs:
            self.server.released.wait(30)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """A function that starts a server of {path: bytes}. `drops`: bytes after which the answers break off, in turn."""
    running = []

    def start(contents, drops=(), ignores_range=False, hangs=False):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.files, server.drops, server.ignores_range, server.hangs = contents, list(drops), ignores_range, hangs
        server.log, server.released, server.shift = [], threading.Event(), 0
        server.url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.released.set()
        server.shutdown()
        server.server_close()


def start_fetch(name):
    """A process that fetches the set."""
    code = f"from lsbook import datasets; print(datasets.fetch({name!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- scikit-learn's digits ---


def test_digits_are_what_they_were():
    data = datasets.digits()
    assert data.class_names == tuple("0123456789")
    assert (data.name, data.num_classes, data.train.inputs.dtype) == ("digits", 10, torch.float64)
    assert (data.train.inputs.shape, data.test.inputs.shape) == ((150, 64), (1647, 64))
    content = b"".join(t.numpy().tobytes() for split in (data.train, data.test) for t in split)
    assert hashlib.sha256(content).hexdigest()[:16] == "954de558d6f54709"


def test_digits_need_every_class_in_both_splits():
    for wrong in (9, 1788):
        with pytest.raises(ValueError, match=rf"train_examples must lie in \[10, 1787\] for digits, got {wrong}"):
            datasets.digits(wrong)


def test_a_dataset_needs_no_class_names():
    split = datasets.Split(torch.zeros(1, 2), torch.zeros(1))
    assert datasets.Dataset("x", 2, split, split).class_names == ()


# --- the digest and the order ---


@given(st.integers(0, 2**32 - 1))
def test_digest_and_order_are_the_same_for_every_permutation(seed):
    images, labels = make_images((2, 2, 3), 10, 5)["train"]
    order = np.random.default_rng(seed).permutation(len(labels))
    digests = datasets.example_digests(images[order], labels[order])
    assert datasets.content_digest(digests) == image_digests({"x": (images, labels)})["x"]
    by_digest = np.array(sorted(range(len(order)), key=digests.__getitem__))
    reference = sorted(zip(images, labels, strict=True), key=lambda e: hashlib.sha256(e[0].tobytes() + e[1]).digest())
    np.testing.assert_array_equal(images[order][by_digest], np.stack([image for image, _ in reference]))
    np.testing.assert_array_equal(labels[order][by_digest], np.stack([label for _, label in reference]))


@pytest.mark.parametrize("place", ["image", "label", "swap", "twice"])
def test_digest_sees_every_change(place):
    images, labels = make_images((2, 3), 10, 5)["test"]
    before = datasets.content_digest(datasets.example_digests(images, labels))
    images, labels = images.copy(), labels.copy()
    if place == "image":
        images[2, 1, 1] ^= 1
    elif place == "label":
        labels[3] = (labels[3] + 1) % 10
    elif place == "swap":  # a pixel for its neighbour
        images[2, 0, :2] = images[2, 0, 1::-1]
    else:
        images[3], labels[3] = images[2], labels[2]
    assert datasets.content_digest(datasets.example_digests(images, labels)) != before


def test_sentence_digest_is_that_of_a_plain_loop():
    digests = datasets.sentence_digests(PAIRS["train"])
    assert datasets.content_digest(digests) == slow_digest([f"{e}\n{g}".encode() for e, g in PAIRS["train"]])


# --- from server to tensors ---


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_images_from_server_to_tensors(world, serve, name):
    server = serve(world.archives)
    world.write(server.url)
    data = datasets.load(name)
    assert world.finished() == [f"{name}.npz"]
    assert world.unfinished() == [] and not (world.data / f"{name}.part").exists()
    assert (data.name, data.num_classes) == (name, 100 if name == "cifar100" else 10)
    assert data.class_names[:2] == ("class 0", "class 1")
    for split, part in zip(("train", "test"), (data.train, data.test), strict=True):
        images, labels = world.contents[name][split]
        images = images.reshape(*images.shape[:3], -1)
        examples = sorted(
            zip(images, labels, strict=True), key=lambda e: hashlib.sha256(e[0].tobytes() + e[1]).digest()
        )
        assert part.inputs.dtype == torch.uint8 and part.labels.dtype == torch.int64
        assert part.inputs.is_contiguous(memory_format=torch.channels_last)
        expected = np.stack([image.transpose(2, 0, 1) for image, _ in examples])
        np.testing.assert_array_equal(part.inputs.numpy(), expected)
        assert part.labels.tolist() == [int(label) for _, label in examples]
    assert datasets.verify(name) == world.sources[name]["digests"]


def test_order_in_the_file_does_not_matter(world):
    world.store("cifar10")
    first = datasets.load("cifar10")
    images, labels = world.contents["cifar10"]["train"]
    world.store("cifar10", train_images=images[::-1], train_labels=labels[::-1])
    second = datasets.load("cifar10")
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.train.labels, second.train.labels)


def test_further_arrays_in_the_file_do_no_harm(world):
    world.store("cifar100", train_coarse=np.zeros(10, np.uint8), class_names=np.array(["a"]))
    assert len(datasets.load("cifar100").train.labels) == 10


def test_sentences_from_server_to_pairs(world, serve):
    world.write(serve(world.archives).url)
    assert datasets.multi30k() == PAIRS
    assert world.finished() == [f"multi30k/{name}" for name in sorted(world.sources["multi30k"]["files"])]
    assert datasets.verify("multi30k") == world.sources["multi30k"]["digests"]


def test_superclasses(world):
    assert datasets.superclasses() == (("even", "odd"), tuple(k % 2 for k in range(100)))
    with pytest.raises(ValueError, match="name must be one of 'cifar100', got 'cifar10'; did you mean 'cifar100'"):
        datasets.superclasses("cifar10")


def test_status_says_what_is_there(world):
    assert datasets.status("mnist") == ("mnist", "Made up", world.data / "mnist.npz", False, 0)
    path = world.store("mnist")
    assert datasets.status("mnist") == ("mnist", "Made up", path, True, path.stat().st_size)
    assert datasets.status("multi30k")[2:] == (world.data / "multi30k", False, 0)
    files.write(world.data / "multi30k" / "train.en.gz", b"123")
    assert datasets.status("multi30k")[3:] == (False, 3)


def test_a_whole_set_is_not_downloaded_again(world, serve):
    server = serve(world.archives)
    world.write(server.url)
    path = datasets.fetch("cifar10")
    stamp = path.stat().st_mtime_ns
    assert datasets.fetch("cifar10") == path
    assert len(server.log) == 1 and path.stat().st_mtime_ns == stamp
    datasets.fetch("cifar10", force=True)
    assert len(server.log) == 2


def test_a_damaged_set_is_replaced_when_fetched(world, serve):
    world.store("cifar10", test_labels=np.zeros(4, np.uint8))
    world.write(serve(world.archives).url)
    datasets.fetch("cifar10")
    assert datasets.verify("cifar10") == world.sources["cifar10"]["digests"]


@pytest.mark.parametrize("call", ["fetch", "verify", "status", "load"])
def test_unknown_names_get_the_nearest(world, call):
    with pytest.raises(ValueError, match="name must be one of 'mnist', 'cifar10', .*, got 'cifar-10'; did you mean"):
        getattr(datasets, call)("cifar-10")
    assert not world.data.exists()


def test_sentences_are_not_loaded_as_images(world):
    with pytest.raises(ValueError, match="name must be one of 'mnist', 'cifar10', 'cifar100', got 'multi30k'"):
        datasets.load("multi30k")


def test_progress_bar_only_where_asked(world, serve, capfd):
    world.write(serve(world.archives).url)
    datasets.fetch("cifar10")
    assert capfd.readouterr() == ("", "")
    datasets.fetch("cifar10", force=True, progress=True)
    assert "cifar10.tar.gz" in capfd.readouterr().err


def test_the_folder(monkeypatch):
    monkeypatch.setenv("LSBOOK_DATA", "~/sets")
    assert datasets.folder() == files.Path.home() / "sets"
    monkeypatch.delenv("LSBOOK_DATA")
    assert datasets.folder().name == "lsbook"


# --- downloads that go wrong ---


def test_a_broken_download_goes_on_where_it_stopped(world, serve):
    server = serve(world.archives, drops=[40, 30])
    world.write(server.url)
    datasets.fetch("cifar10")
    assert server.log == [("cifar10.tar.gz", None), ("cifar10.tar.gz", "bytes=40-"), ("cifar10.tar.gz", "bytes=70-")]
    assert datasets.verify("cifar10") == world.sources["cifar10"]["digests"]


def test_a_download_that_brings_nothing_is_given_up_and_kept(world, serve):
    server = serve(world.archives, drops=[40, 0])
    world.write(server.url)
    with pytest.raises(datasets.MissingDataError, match=r"cifar10\.npz"):
        datasets.fetch("cifar10")
    assert world.finished() == []
    assert [path.stat().st_size for path in world.unfinished()] == [40]
    datasets.fetch("cifar10")
    assert server.log[-1] == ("cifar10.tar.gz", "bytes=40-")
    assert world.finished() == ["cifar10.npz"] and world.unfinished() == []


def test_a_server_that_knows_no_ranges_is_asked_for_all(world, serve):
    server = serve(world.archives, drops=[40], ignores_range=True)
    world.write(server.url)
    datasets.fetch("cifar10")
    assert server.log == [("cifar10.tar.gz", None), ("cifar10.tar.gz", "bytes=40-")]
    assert datasets.verify("cifar10") == world.sources["cifar10"]["digests"]


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_file_as_long_as_the_archive_or_longer(world, serve, extra):
    server = serve(world.archives, drops=[40, 0])
    world.write(server.url)
    with pytest.raises(datasets.MissingDataError):
        datasets.fetch("cifar10")
    world.unfinished()[0].write_bytes(world.archives["cifar10.tar.gz"] + bytes(extra))
    datasets.fetch("cifar10")
    assert datasets.verify("cifar10") == world.sources["cifar10"]["digests"]
    assert len(server.log) == (3 if extra == 0 else 4)


def test_rotten_part_is_thrown_away_so_that_the_next_call_succeeds(world, serve):
    server = serve(world.archives, drops=[40, 0])
    world.write(server.url)
    with pytest.raises(datasets.MissingDataError):
        datasets.fetch("cifar10")
    world.unfinished()[0].write_bytes(b"x" * 40)
    with pytest.raises(datasets.MissingDataError, match="no whole gzip file"):
        datasets.fetch("cifar10")
    assert world.finished() == world.unfinished() == []
    datasets.fetch("cifar10")
    assert world.finished() == ["cifar10.npz"]


def test_a_server_that_sends_another_range_is_not_believed(world, serve):
    server = serve(world.archives, drops=[40, 0])
    world.write(server.url)
    with pytest.raises(datasets.MissingDataError):
        datasets.fetch("cifar10")
    server.shift = 10
    with pytest.raises(datasets.MissingDataError, match="asked for bytes 40-, got bytes 30-"):
        datasets.fetch("cifar10")
    assert world.finished() == world.unfinished() == []


def test_next_server_after_404(world, serve):
    empty, good = serve({}), serve(world.archives)
    world.write(empty.url, good.url)
    datasets.fetch("mnist")
    assert len(empty.log) == 1 and len(good.log) == 4
    assert datasets.verify("mnist") == world.sources["mnist"]["digests"]


def test_wrong_content_then_the_next_server(world, serve):
    images, labels = world.contents["cifar10"]["train"]
    false = {"train": (images ^ 1, labels), "test": world.contents["cifar10"]["test"]}
    wrong = serve({"cifar10.tar.gz": tar_gz(cifar_members(cifar_records(false, 1)))})
    good = serve(world.archives)
    world.write(wrong.url, good.url)
    datasets.fetch("cifar10")
    assert len(wrong.log) == len(good.log) == 1
    assert datasets.verify("cifar10") == world.sources["cifar10"]["digests"]


def test_bytes_of_two_servers_are_never_joined(world, serve):
    first, second = serve(world.archives, drops=[40, 0]), serve(world.archives)
    world.write(first.url, second.url)
    datasets.fetch("cifar10")
    assert second.log == [("cifar10.tar.gz", None)]


def bomb():
    """30 MB of zeros in 30 kB."""
    return gzip.compress(bytes(30_000_000))


def link(name, target, kind, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info, bytes(size)


def huge(name):
    info = tarfile.TarInfo(name)
    info.size = 2**40
    packed = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    return gzip.compress(packed)


def sparse(name):
    """A member of a kilobyte that says it is a terabyte of holes."""
    content = b"1\n0\n65\n".ljust(1024, b"\0")
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
    info.pax_headers["GNU.sparse.realsize"] = str(2**40)
    return info, content


def hostile(world, case, outside):
    """Archives that a careless reader would suffer from, in place of cifar10.tar.gz."""
    members = cifar_members(cifar_records(world.contents["cifar10"], 1))
    good, first = world.archives["cifar10.tar.gz"], members[0][0]
    return {
        "html": lambda: b"<!DOCTYPE html><html>Not found</html>",
        "empty": lambda: b"",
        "truncated": lambda: good[: len(good) // 2],
        "corrupt": lambda: good[:60] + bytes(20) + good[80:],
        "bomb": bomb,
        "not a tar": lambda: gzip.compress(b"no tar" * 200),
        "huge member": lambda: huge(first),
        "sparse member": lambda: tar_gz([sparse(first), *members[1:]]),
        "symlink": lambda: tar_gz([link(first, "/etc/passwd", tarfile.SYMTYPE), *members[1:]]),
        "link of the right size": lambda: tar_gz(
            [*members[:2], link(members[2][0], "/etc/passwd", tarfile.SYMTYPE, 52)]
        ),
        "hardlink": lambda: tar_gz([link(first, "/etc/passwd", tarfile.LNKTYPE), *members[1:]]),
        "device": lambda: tar_gz([link(first, "", tarfile.CHRTYPE), *members[1:]]),
        "traversal": lambda: tar_gz([(f"../../{outside.name}", members[0][1]), *members[1:]]),
        "absolute": lambda: tar_gz([(str(outside), members[0][1]), *members[1:]]),
        "short member": lambda: tar_gz([(first, members[0][1][:-1]), *members[1:]]),
        "member cut off": lambda: gzip.compress(gzip.decompress(good)[:530]),
        "missing member": lambda: tar_gz(members[1:]),
    }[case]()


CASES = {
    "html": "no whole gzip file .*starts with b'<!DOCTYPE html>",
    "empty": r"cifar10\.tar\.gz (is no whole gzip file|cannot be read)",
    "truncated": "no whole gzip file",
    "corrupt": "no whole gzip file",
    "bomb": r"unpacks to more than the expected 1,048,758 bytes",
    "not a tar": "cannot be read",
    "huge member": "cannot be read: unexpected end of data",
    "sparse member": "must be a plain file of 65 bytes, got a plain file of 1,099,511,627,776",
    "symlink": "must be a plain file of 65 bytes, got no plain file",
    "link of the right size": "must be a plain file of 52 bytes, got no plain file of 52",
    "hardlink": "must be a plain file of 65 bytes, got no plain file",
    "device": "must be a plain file of 65 bytes, got no plain file",
    "traversal": "no member bin/train_0.bin",
    "absolute": "no member bin/train_0.bin",
    "short member": "must be a plain file of 65 bytes, got a plain file of 64",
    "member cut off": "cut short|cannot be read",
    "missing member": "no member bin/train_0.bin",
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_or_damaged_archive(world, serve, tmp_path, case):
    outside = tmp_path / "outside.bin"
    world.write(serve({"cifar10.tar.gz": hostile(world, case, outside)}).url)
    with pytest.raises(datasets.MissingDataError, match=f"not the data set: .*{CASES[case]}"):
        datasets.fetch("cifar10")
    assert not outside.exists()
    assert world.finished() == world.unfinished() == []


def test_a_bomb_is_never_unpacked_whole(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(bomb())
    tracemalloc.start()
    try:
        with pytest.raises(datasets.DamagedDataError, match="unpacks to more than the expected 1,000 bytes"):
            datasets._gunzip(path, 1000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_strange_members_beside_the_good_ones_are_never_written(world, serve, tmp_path):
    outside = tmp_path / "outside.bin"
    members = cifar_members(cifar_records(world.contents["cifar10"], 1))
    strange = [(str(outside), b"x"), ("../../../outside.bin", b"x"), link("bin/link", "/etc/passwd", tarfile.SYMTYPE)]
    world.write(serve({"cifar10.tar.gz": tar_gz([*strange, *members])}).url)
    datasets.fetch("cifar10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "sets"]
    assert world.finished() == ["cifar10.npz"]


def test_a_server_that_sends_too_much_is_stopped(world, serve):
    world.write(serve({"cifar10.tar.gz": bytes(2_000_000)}).url)
    with pytest.raises(datasets.MissingDataError, match="sends more than the expected 1,048,758 bytes"):
        datasets.fetch("cifar10")
    assert world.finished() == world.unfinished() == []


@pytest.mark.parametrize("case", ["magic", "size", "cut", "long"])
def test_wrong_idx_file(world, serve, case):
    images = world.contents["mnist"]["train"][0]
    content = {
        "magic": idx(images).replace(b"\x08\x03", b"\x08\x02", 1),
        "size": idx(images.reshape(10, 3, 2)),
        "cut": idx(images)[:-1],
        "long": idx(images) + b"0",
    }[case]
    world.write(serve(world.archives | {"train-images.gz": gzip.compress(content)}).url)
    expected = "unpacks to more than the expected 76" if case == "long" else "must unpack to 76 bytes that start with"
    with pytest.raises(datasets.MissingDataError, match=f"train-images.gz {expected}"):
        datasets.fetch("mnist")
    assert world.finished() == world.unfinished() == []


def test_wrong_digest_everywhere(world, serve):
    false = serve(world.archives), serve(world.archives)
    world.sources["mnist"]["digests"] = {"train": "0" * 64, "test": "1" * 64}
    world.write(*(server.url for server in false))
    with pytest.raises(datasets.MissingDataError) as caught:
        datasets.fetch("mnist")
    message = str(caught.value)
    found = image_digests(world.contents["mnist"])["train"]
    assert message.count(f"split train has digest {found}, expected {'0' * 64}") == 2
    for part in (str(world.data / "mnist.npz"), "lsbook data fetch mnist", "LSBOOK_DATA", *(s.url for s in false)):
        assert part in message
    assert world.finished() == world.unfinished() == []


def test_no_network(world):
    for call in (datasets.load, datasets.fetch):
        with pytest.raises(FileNotFoundError) as caught:
            call("cifar10")
        message = str(caught.value)
        for part in ("cifar10.npz", str(world.data), "LSBOOK_DATA", "http://127.0.0.1:9/", "lsbook data fetch cifar10"):
            assert part in message
        assert "refused" in message
    with pytest.raises(datasets.MissingDataError, match=r"multi30k/train\.en\.gz"):
        datasets.multi30k()
    assert {path.name for path in world.data.iterdir()} <= {".cifar10.lock", ".multi30k.lock"}


def test_offline_means_no_request(world, serve, monkeypatch):
    server = serve(world.archives)
    world.write(server.url)
    monkeypatch.setenv("LSBOOK_OFFLINE", "1")
    for call in (datasets.load, datasets.fetch):
        with pytest.raises(datasets.MissingDataError, match=r"no file .*mnist\.npz: LSBOOK_OFFLINE is set"):
            call("mnist")
    assert server.log == [] and not world.data.exists()
    world.store("mnist")
    assert len(datasets.load("mnist").test.labels) == 4
    monkeypatch.setenv("LSBOOK_OFFLINE", "0")
    datasets.fetch("mnist", force=True)
    assert len(server.log) == 4


def test_verify_downloads_nothing(world, serve):
    server = serve(world.archives)
    world.write(server.url)
    with pytest.raises(datasets.MissingDataError, match="mnist.npz: nothing was downloaded"):
        datasets.verify("mnist")
    assert server.log == [] and not world.data.exists()


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_writing_the_set(world, serve, monkeypatch):
    world.write(serve(world.archives).url)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"no space left for cifar10\.npz .*; nothing was written"):
            datasets.fetch("cifar10")
    assert world.finished() == []
    datasets.fetch("cifar10")
    assert world.finished() == ["cifar10.npz"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_full_disk_while_downloading(world, serve, monkeypatch):
    server = serve(world.archives)
    world.write(server.url)

    def open_full(path, mode):
        if not str(path).endswith(".part"):
            return open(path, mode)
        open(path, mode).close()
        return open("/dev/full", mode)

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "open", open_full, raising=False)
        with pytest.raises(OSError, match=r"no space left for cifar10\.tar\.gz in .*cifar10\.part.* 0 bytes") as caught:
            datasets.fetch("cifar10")
    assert caught.value.errno == errno.ENOSPC and not isinstance(caught.value, FileNotFoundError)
    assert world.finished() == []
    datasets.fetch("cifar10")
    assert world.finished() == ["cifar10.npz"] and world.unfinished() == []


# --- more than one process ---


def wait_for(condition):
    deadline = time.monotonic() + 120  # a fresh process imports torch, which takes its time on a busy machine
    while not condition():
        assert time.monotonic() < deadline, "waited for 120 s in vain"
        time.sleep(0.02)


def test_killed_in_mid_download_then_gone_on_with(world, serve):
    noise = np.random.default_rng(0).bytes(400_000)  # so that the archive is longer than a chunk
    members = cifar_members(cifar_records(world.contents["cifar10"], 1))
    archive = tar_gz([*members, ("noise", noise)])
    server = serve({"cifar10.tar.gz": archive}, drops=[200_000], hangs=True)
    world.write(server.url)
    process = start_fetch("cifar10")
    wait_for(lambda: world.unfinished() and world.unfinished()[0].stat().st_size >= 65_536)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert world.finished() == []
    kept = world.unfinished()[0].stat().st_size
    assert archive.startswith(world.unfinished()[0].read_bytes())
    datasets.fetch("cifar10")
    assert server.log == [("cifar10.tar.gz", None), ("cifar10.tar.gz", f"bytes={kept}-")]
    assert datasets.verify("cifar10") == world.sources["cifar10"]["digests"]
    assert world.finished() == ["cifar10.npz"] and world.unfinished() == []


def test_two_processes_at_once_download_once(world, serve):
    server = serve(world.archives)
    world.write(server.url)
    processes = [start_fetch("mnist") for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.strip() == str(world.data / "mnist.npz")
    assert sorted(path for path, _ in server.log) == sorted(world.sources["mnist"]["files"])
    assert world.finished() == ["mnist.npz"] and world.unfinished() == []


# --- files that are not what they should be ---


DAMAGE = {
    "train_images": (None, "must hold the arrays train_images, .*: train_images is not a file in the archive"),
    "test_labels": (np.zeros(4, np.int64), r"test_labels must be uint8 \(4,\), got int64 \(4,\)"),
    "train_labels": (np.zeros(9, np.uint8), r"train_labels must be uint8 \(10,\), got uint8 \(9,\)"),
    "test_images": (np.zeros((4, 3, 2, 2), np.uint8), r"test_images must be uint8 \(4, 2, 2, 3\), got"),
}


@pytest.mark.parametrize("key", DAMAGE)
def test_wrong_arrays(world, key):
    array, message = DAMAGE[key]
    path = world.store("cifar10", **{key: array})
    for call in (datasets.load, datasets.verify):
        with pytest.raises(datasets.DamagedDataError, match=rf"cifar10\.npz.*{message}.*`lsbook data fetch cifar10"):
            call("cifar10")
    assert path.exists()


def test_one_wrong_pixel(world):
    images = world.contents["cifar10"]["test"][0].copy()
    images[3, 1, 1, 2] ^= 1
    path = world.store("cifar10", test_images=images)
    expected = world.sources["cifar10"]["digests"]["test"]
    with pytest.raises(ValueError, match="--force`, or delete it") as caught:
        datasets.load("cifar10")
    for part in (str(path), "split test has digest", f"expected {expected}", "lsbook data fetch cifar10 --force"):
        assert part in str(caught.value)


class Evil:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("case", ["pickle", "npz", "npy"])
def test_pickles_are_never_executed(world, tmp_path, case):
    mark = tmp_path / "executed"
    path = world.store("cifar10", train_labels=np.array([Evil(mark)], object) if case == "npz" else None)
    if case == "pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif case == "npy":
        with open(path, "wb") as file:
            np.save(file, np.array([Evil(mark)], object))
    with pytest.raises(
        datasets.DamagedDataError, match=r"cifar10\.npz (is not an \.npz file|cannot be read: Object arr)"
    ):
        datasets.load("cifar10")
    assert not mark.exists()


@pytest.mark.parametrize("case", ["empty", "text", "cut", "flipped", "offset", "no array"])
def test_files_that_are_no_npz(world, case):
    path = world.store("cifar10")
    content = path.read_bytes()
    middle = content.index(world.contents["cifar10"]["train"][0].tobytes()) + 5
    at = content.rindex(b"PK\x05\x06") + 16  # where the list of members starts: seven bytes too far
    offset = (int.from_bytes(content[at : at + 4], "little") + 7).to_bytes(4, "little")
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello",
            "cut": content[: len(content) // 2],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "offset": content[:at] + offset + content[at + 4 :],  # regression: an OSError without the file's name
            "no array": content,
        }[case]
    )
    if case == "no array":
        with zipfile.ZipFile(path, "w") as archive:
            for key in datasets._ARRAYS:
                archive.writestr(f"{key}.npy", b"hello")
    with pytest.raises(
        datasets.DamagedDataError, match=r"cifar10\.npz ?(is not an .npz file|cannot be read|: train_images must)"
    ):
        datasets.load("cifar10")


@pytest.mark.parametrize("case", ["uneven", "missing", "digest", "no gzip", "latin-1"])
def test_damaged_sentences(world, case):
    for name in world.sources["multi30k"]["files"]:
        files.write(world.data / "multi30k" / name, world.archives[name])
    assert datasets.multi30k() == PAIRS
    path = world.data / "multi30k" / "train.de.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    new, message = {
        "uneven": (gzip.compress(b"Ein Hund.\n"), "must have 3 sentence pairs, got 3 English and 1 German lines"),
        "missing": (None, "unused"),
        "digest": (gzip.compress(text.replace("Hund", "Hand", 1).encode()), "split train has digest"),
        "no gzip": (text.encode(), r"train\.de\.gz is no whole gzip file"),
        "latin-1": (gzip.compress(text.encode("latin-1", "replace")), r"train\.de\.gz is not UTF-8"),
    }[case]
    if new is None:
        path.unlink()
        with pytest.raises(datasets.MissingDataError, match=r"no file .*multi30k/train\.de\.gz"):
            datasets.multi30k()
        return
    path.write_bytes(new)
    with pytest.raises(datasets.DamagedDataError, match=f"{message}.*lsbook data fetch multi30k --force"):
        datasets.multi30k()


# --- the list of sources ---


def test_the_real_list_is_complete(monkeypatch):
    monkeypatch.delenv("LSBOOK_RUNS_DATA", raising=False)
    sources = datasets.sources()
    assert list(sources) == ["mnist", "cifar10", "cifar100", "multi30k"]
    for source in sources.values():
        assert {"title", "page", "terms", "citation", "record_bytes", "format", "kind"} <= set(source)
        assert set(source["digests"]) == set(source["examples"])
        assert all(
            len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in source["digests"].values()
        )
        assert all(server.startswith("https://") and server.endswith("/") for server in source["servers"])
        assert len(source["servers"]) >= 2
        if source["kind"] == "images":
            assert source["format"] in datasets._READERS
    for name, num_classes in (("mnist", 10), ("cifar10", 10), ("cifar100", 100)):
        assert len(sources[name]["class_names"]) == num_classes
        assert sources[name]["class_names"] == sorted(sources[name]["class_names"])


def test_superclasses_of_cifar100(monkeypatch):
    monkeypatch.delenv("LSBOOK_RUNS_DATA", raising=False)
    names, index = datasets.superclasses()
    classes = datasets.sources()["cifar100"]["class_names"]
    assert len(names) == 20 and np.bincount(index).tolist() == [5] * 20
    by_hand = {"apple": "fruit_and_vegetables", "beaver": "aquatic_mammals", "worm": "non-insect_invertebrates"}
    assert {name: names[index[classes.index(name)]] for name in by_hand} == by_hand


# --- the real sets, where LSBOOK_DATA holds them ---


def real(name):
    """Whether the real set is at hand."""
    return "LSBOOK_DATA" in os.environ and datasets.status(name).present


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "multi30k"])
def test_real_set_matches_its_digests(name):
    if not real(name):
        pytest.skip(f"LSBOOK_DATA holds no {name}")
    assert datasets.verify(name) == datasets.sources()[name]["digests"]


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_real_classes_are_balanced_as_published_and_prefixes_are_random(name):
    if not real(name):
        pytest.skip(f"LSBOOK_DATA holds no {name}")
    data = datasets.load(name)
    counts = torch.bincount(data.train.labels)
    if name == "mnist":
        assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    else:
        assert counts.tolist() == [50_000 // data.num_classes] * data.num_classes
    prefix = torch.bincount(data.train.labels[:10_000], minlength=data.num_classes) / 10_000
    assert (prefix - counts / counts.sum()).abs().max() < 0.02


def test_real_superclasses_are_those_of_the_file():
    if not real("cifar100"):
        pytest.skip("LSBOOK_DATA holds no cifar100")
    with np.load(datasets.folder() / "cifar100.npz") as stored:
        if "train_coarse" not in stored:
            pytest.skip("this copy has no superclasses")
        expected = stored["train_coarse"], stored["test_coarse"]
        index = np.array(datasets.superclasses()[1])
        np.testing.assert_array_equal(index[stored["train_labels"]], expected[0])
        np.testing.assert_array_equal(index[stored["test_labels"]], expected[1])


# --- digits as images


def test_digit_images_are_the_digits_in_larger_squares():
    from sklearn.datasets import load_digits

    data = datasets.load("digit_images")
    assert (data.name, data.num_classes, data.class_names) == ("digit_images", 10, tuple("0123456789"))
    assert [tuple(split.inputs.shape) for split in (data.train, data.test)] == [(1297, 1, 32, 32), (500, 1, 32, 32)]
    inputs, labels = (torch.cat(parts) for parts in zip(data.train, data.test, strict=True))
    assert (inputs.dtype, labels.dtype) == (torch.uint8, torch.int64)
    squares = inputs.reshape(-1, 8, 4, 8, 4)
    assert (squares == squares[:, :, :1, :, :1]).all()
    pixels, expected = load_digits(return_X_y=True)
    rows = np.column_stack([squares[:, :, 0, :, 0].reshape(-1, 64) // 15, labels])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, np.column_stack([pixels, expected]).tolist()))
    assert (data.test.labels.bincount() - 50).abs().max() <= 2


def test_digit_images_are_always_the_same():
    first, second = datasets.digit_images(), datasets.load("digit_images")
    for one, other in zip(first.train + first.test, second.train + second.test, strict=True):
        assert torch.equal(one, other)
