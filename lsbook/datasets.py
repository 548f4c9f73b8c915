"""Data sets as tensors on the device, each checked against a digest of its content.

`data/datasets.toml` says where each set comes from and what it must hold. A set lies in `folder()`: images as NAME.npz
(arrays train_images, train_labels, test_images, test_labels), sentences as gzip files in the folder NAME.
"""

import contextlib
import errno
import functools
import gzip
import hashlib
import io
import math
import os
import shutil
import tarfile
import tomllib
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from . import files
from .checks import check_choice, check_int

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_ATTEMPTS = 5  # times to go on with a download that broke off, before the next server is tried
_SLACK = 2**20  # bytes that headers, names and notes in an archive may take beside the examples


class DamagedDataError(ValueError):
    """Data are there, but they are not what `datasets.toml` says they must be."""


class MissingDataError(FileNotFoundError):
    """Data are not there, and could not be (or must not be) downloaded."""


class Split(NamedTuple):
    """Inputs (N, …) and labels (N,) on one device."""

    inputs: torch.Tensor
    labels: torch.Tensor


class Dataset(NamedTuple):
    """A training split and a held-out one; class k is called ``class_names[k]``."""

    name: str
    num_classes: int
    train: Split
    test: Split
    class_names: tuple[str, ...] = ()


class Status(NamedTuple):
    """Whether a set is in the folder, under which path, and its size in bytes; says nothing about its content."""

    name: str
    title: str
    path: Path
    present: bool
    bytes: int


@functools.cache  # reading them takes as long as a few epochs on them
def _all_digits():
    """Pixels (1797, 64) from 0 to 16, and labels; nobody may change them."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels.flags.writeable = labels.flags.writeable = False
    return pixels, labels


def digits(train_examples=150, seed=0, dtype=torch.float64, device="cpu"):
    """scikit-learn's 1,797 handwritten digits (8 × 8 pixels, 10 classes), which ship with that package.

    A class-balanced random `train_examples` of them are for training, all others are held out. The same seed
    gives the same split anywhere. Inputs are pixels in [0, 1], flattened to (N, 64).

    Raises ValueError unless 10 ≤ train_examples ≤ 1787, so that each class can stand in both splits, or if seed < 0;
    TypeError if one of them is no whole number.
    """
    from sklearn.model_selection import train_test_split

    seed = check_int(seed, "seed", 0)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type of torch, for pixels in [0, 1], got {dtype}")
    if not 10 <= check_int(train_examples, "train_examples") <= 1787:
        raise ValueError(f"train_examples must lie in [10, 1787] for digits, got {train_examples}")
    pixels, labels = _all_digits()
    parts = train_test_split(pixels / 16, labels, train_size=train_examples, stratify=labels, random_state=seed)
    train_x, test_x = (torch.as_tensor(x, dtype=dtype, device=device) for x in parts[:2])
    train_y, test_y = (torch.as_tensor(y, dtype=torch.long, device=device) for y in parts[2:])
    return Dataset("digits", 10, Split(train_x, train_y), Split(test_x, test_y), tuple("0123456789"))


def digit_images(device="cpu"):
    """The 1,797 digits as grey images of 32 × 32 pixels: inputs uint8 (N, 1, 32, 32), 500 of them held out.

    Each pixel of 8 × 8 becomes a square of 4 × 4. So a network for images can be tried without any download; always
    the same split, class-balanced.
    """
    from sklearn.model_selection import train_test_split

    pixels, labels = _all_digits()
    images = np.kron(pixels.reshape(-1, 1, 8, 8) * 15, np.ones((1, 1, 4, 4))).astype(np.uint8)  # 0 … 16 to 0 … 240
    parts = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part).to(device) for part in parts)
    return Dataset("digit_images", 10, Split(train_x, train_y), Split(test_x, test_y), tuple("0123456789"))


def load(name, device="cpu", progress=False):
    """MNIST, CIFAR-10, CIFAR-100 or `digit_images`: inputs uint8 (N, C, H, W), labels int64 (N,), both on `device`.

    Each split comes in canonical order, that of the examples' SHA-256 digests: the same arrays whatever the container
    held, and every prefix is a random sample. An absent set is fetched, with a bar if `progress`.

    Raises ValueError for an unknown name, MissingDataError if the set is absent and cannot be fetched,
    DamagedDataError if it is not the data set.
    """
    if name == "digit_images":
        return digit_images(device)
    source = _source(name, "images")
    if not status(name).present:
        fetch(name, progress=progress)
    splits = []
    for (images, labels), digests in _read_stored(name, source).values():
        order = sorted(range(len(digests)), key=digests.__getitem__)
        # The channels of a pixel stay side by side in memory, the order in which shifting and convolving are fast.
        inputs = torch.from_numpy(images[order].reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2)
        splits.append(Split(inputs.to(device), torch.from_numpy(labels[order].astype(np.int64)).to(device)))
    return Dataset(name, len(source["class_names"]), *splits, tuple(source["class_names"]))


def superclasses(name="cifar100"):
    """Names of the superclasses, and for each class the index of its superclass: two tuples of 20 and 100 entries."""
    source = sources()[check_choice(name, "name", [key for key, value in sources().items() if "superclasses" in value])]
    return tuple(source["superclasses"]), tuple(source["superclass_of"])


def multi30k(progress=False):
    """Multi30k's sentences: a dictionary from split to a list of (English, German) pairs, in the authors' order.

    Splits: train, val, test_2016_flickr, test_2017_flickr, test_2018_flickr, test_2017_mscoco. An absent set is
    fetched, with a bar if `progress`. Raises MissingDataError and DamagedDataError as `load` does.
    """
    if not status("multi30k").present:
        fetch("multi30k", progress=progress)
    return {split: pairs for split, (pairs, _) in _read_stored("multi30k", _source("multi30k")).items()}


def folder():
    """Folder of the data sets: LSBOOK_DATA where that is set, else the user's cache folder. It may not exist yet."""
    if chosen := os.environ.get("LSBOOK_DATA"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("lsbook"))


def sources():
    """`datasets.toml` as a dictionary from a set's name to its source, terms, counts, classes and digests."""
    return tomllib.loads((files.data_folder() / "datasets.toml").read_text(encoding="utf-8"))


def status(name):
    """Whether the set is there: a `Status`. Reads no content; raises ValueError for an unknown name."""
    source = _source(name)
    paths = _paths(name, source)
    present = all(path.is_file() for path in paths)
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return Status(name, source["title"], paths[0] if len(paths) == 1 else paths[0].parent, present, size)


def verify(name):
    """Read the whole set and return its content digests, a dictionary from split to 64 hexadecimal digits.

    Raises MissingDataError if it is absent, DamagedDataError if it is not the data set. Downloads nothing.
    """
    source = _source(name)
    if not status(name).present:
        raise _missing(name, source, ["nothing was downloaded"])
    return {split: content_digest(digests) for split, (_, digests) in _read_stored(name, source).items()}


def fetch(name, force=False, progress=False):
    """Download the set unless it is there and whole (or `force`); returns its path. `progress` draws a bar.

    The servers of `datasets.toml` are tried in turn. A download that broke off goes on where it stopped, at the next
    call too. Only what matches the digests is kept. Of two processes that fetch the same set, one waits.

    Raises ValueError for an unknown name, MissingDataError with a reason a server, OSError if the disk is full.
    """
    from filelock import FileLock

    source = _source(name)
    if not force and _is_whole(name, source):
        return status(name).path
    if os.environ.get("LSBOOK_OFFLINE", "0") not in ("", "0"):
        raise _missing(name, source, ["LSBOOK_OFFLINE is set, so nothing was downloaded"])
    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / f".{name}.lock"):
        if force or not _is_whole(name, source):  # another process may have fetched it while this one waited
            _fetch_from_servers(name, source, progress)
    return status(name).path


def example_digests(images, labels):
    """SHA-256 of each example, N times 32 bytes: its image (height × width × channel), then its label as one byte.

    `images` is uint8 (N, H, W) or (N, H, W, C), `labels` uint8 (N,).
    """
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    return [hashlib.sha256(row).digest() for row in rows]


def sentence_digests(pairs):
    """SHA-256 of each (English, German) pair, N times 32 bytes: both sentences in UTF-8, a line feed between."""
    return [hashlib.sha256(f"{english}\n{german}".encode()).digest() for english, german in pairs]


def content_digest(digests):
    """SHA-256 of the sorted digests of a split's examples, 64 hexadecimal digits: no order of examples changes it."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _source(name, kind=None):
    """The entry of `datasets.toml`; only sets of images or of sentences count if `kind` says so."""
    known = {key: value for key, value in sources().items() if kind in (None, value["kind"])}
    return known[check_choice(name, "name", list(known))]


def _paths(name, source):
    """The files that hold the set in `folder()`."""
    if source["kind"] == "images":
        return [folder() / f"{name}.npz"]
    return [folder() / name / file for file in source["files"]]


def _missing(name, source, reasons):
    absent = [str(path) for path in _paths(name, source) if not path.is_file()]
    what = f"no file {absent[0]}" if absent else f"no good copy of {name} to replace the one in {folder()}"
    return MissingDataError(
        f"{what}: {'; '.join(reasons)}. Servers: {', '.join(source['servers'])}. With a network, run "
        f"`lsbook data fetch {name}`; or set LSBOOK_DATA to a folder that holds the set (now {folder()})"
    )


# --- what lies in the folder ---


def _is_whole(name, source):
    try:
        return status(name).present and bool(_read_stored(name, source))
    except DamagedDataError:
        return False


def _read_stored(name, source):
    """A dictionary from split to (its data, its examples' digests), checked; data are (images, labels) or pairs."""
    path = status(name).path
    try:
        if source["kind"] == "images":
            return _checked(_read_npz(path, source), source, path)
        return _checked(_read_sentences(path, source), source, path)
    except DamagedDataError as error:
        advice = f"run `lsbook data fetch {name} --force`, or delete it"
        raise DamagedDataError(f"{error}; {advice}") from error.__cause__


def _checked(data, source, where):
    """Add to each split the digests of its examples. Raises DamagedDataError if they are not the expected ones."""
    checked = {}
    for split, part in data.items():
        digests = sentence_digests(part) if source["kind"] == "sentences" else example_digests(*part)
        found, expected = content_digest(digests), source["digests"][split]
        if found != expected:
            raise DamagedDataError(f"{where}: split {split} has digest {found}, expected {expected}")
        checked[split] = part, digests
    return checked


def _read_npz(path, source):
    """(images, labels) of each split. Nothing is ever unpickled."""
    if not zipfile.is_zipfile(path):
        raise DamagedDataError(f"{path} is not an .npz file (a zip archive of arrays)")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in _ARRAYS}
    except KeyError as error:
        raise DamagedDataError(f"{path} must hold the arrays {', '.join(_ARRAYS)}: {error.args[0]}") from error
    except (FileNotFoundError, PermissionError):
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError) as error:
        raise DamagedDataError(f"{path} cannot be read: {error}") from error  # OSError: an offset before the start
    for key, array in arrays.items():
        split, part = key.split("_")
        shape = (source["examples"][split], *(source["shape"] if part == "images" else ()))
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.shape != shape:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
            raise DamagedDataError(f"{path}: {key} must be uint8 {shape}, got {found}")
    return {split: (arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")}


def _write_npz(path, data):
    content = io.BytesIO()
    np.savez(content, **{key: data[key.split("_")[0]][key.endswith("labels")] for key in _ARRAYS})
    files.write(path, content.getbuffer())


# --- the archives, as the servers hold them; a reader takes the folder of the files and gives data by split ---


def _size_limit(source):
    """Bytes that the unpacked files of a set can have at most."""
    return source["record_bytes"] * sum(source["examples"].values()) + _SLACK


def _gunzip(path, limit):
    """The unpacked bytes of a gzip file. Raises DamagedDataError if it is none, is cut short or exceeds `limit`."""
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)  # so a "bomb" is never unpacked whole
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        with open(path, "rb") as file:
            start = file.read(24)
        raise DamagedDataError(f"{path.name} is no whole gzip file ({error}); it starts with {start}") from error
    if len(content) > limit:
        raise DamagedDataError(f"{path.name} unpacks to more than the expected {limit:,} bytes")
    return content


def _read_idx(place, source):
    """MNIST's format: big-endian header (magic number, dimensions), then unsigned bytes."""
    arrays = {}
    for key, file in zip(_ARRAYS, source["files"], strict=True):
        split, part = key.split("_")
        shape = (source["examples"][split], *(source["shape"] if part == "images" else ()))
        header = np.array([0x0800 + len(shape), *shape], ">i4").tobytes()
        content = _gunzip(place / file, len(header) + math.prod(shape))
        if content[: len(header)] != header or len(content) != len(header) + math.prod(shape):
            expected = f"{len(header) + math.prod(shape):,} bytes that start with {header.hex(' ', 4)}"
            found = f"{len(content):,} bytes that start with {content[: len(header)].hex(' ', 4)}"
            raise DamagedDataError(f"{file} must unpack to {expected}, got {found}")
        arrays[key] = np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
    return {split: (arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")}


def _read_cifar(place, source):
    """CIFAR's binary format: records of one or two label bytes (the last is the class), then channel × row × column."""
    height, width, channels = source["shape"]
    label_bytes = source["record_bytes"] - height * width * channels
    data = {}
    for split, content in _read_tar(place / source["files"][0], source).items():
        records = np.frombuffer(content, np.uint8).reshape(-1, source["record_bytes"])
        images = records[:, label_bytes:].reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        data[split] = np.ascontiguousarray(images), records[:, label_bytes - 1].copy()
    return data


def _read_tar(path, source):
    """Bytes of each split, its members joined. Only the expected members are read, and nothing is put on disk."""
    content = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_gunzip(path, _size_limit(source))), mode="r:") as archive:
            for split, names in source["members"].items():
                size = source["examples"][split] * source["record_bytes"] // len(names)
                content[split] = b"".join(_read_member(archive, name, size) for name in names)
    except tarfile.TarError as error:
        raise DamagedDataError(f"{path.name} cannot be read: {error}") from error
    return content


def _read_member(archive, name, size):
    """Bytes of a plain file in the archive. Its size is checked before anything is read: a sparse file can be huge."""
    try:
        member = archive.getmember(name)
    except KeyError as error:
        raise DamagedDataError(f"the archive has no member {name}") from error
    if not member.isreg() or member.size != size:
        kind = "a plain file" if member.isreg() else "no plain file"
        raise DamagedDataError(f"{name} must be a plain file of {size:,} bytes, got {kind} of {member.size:,}")
    content = archive.extractfile(member).read()
    if len(content) != size:
        raise DamagedDataError(f"{name} is cut short: {len(content):,} of {size:,} bytes")
    return content


def _read_sentences(place, source):
    """(English, German) pairs of each split, from SPLIT.en.gz and SPLIT.de.gz with one sentence a line."""
    data = {}
    for split, count in source["examples"].items():
        english, german = (_read_lines(place / f"{split}.{language}.gz", source) for language in ("en", "de"))
        if not len(english) == len(german) == count:
            found = f"{len(english):,} English and {len(german):,} German lines"
            raise DamagedDataError(f"{place}: split {split} must have {count:,} sentence pairs, got {found}")
        data[split] = list(zip(english, german, strict=True))
    return data


def _read_lines(path, source):
    """Lines of a gzip file. Only a line feed ends one: str.splitlines would also break at rare Unicode separators."""
    try:
        lines = _gunzip(path, _size_limit(source)).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path.name} is not UTF-8: {error}") from error
    return lines[:-1] if lines[-1] == "" else lines


_READERS = {"idx": _read_idx, "cifar": _read_cifar, "sentences": _read_sentences}


# --- the download ---


def _fetch_from_servers(name, source, progress):
    """Put the set into `folder()` from the first server that has it, or raise MissingDataError with all reasons."""
    import requests

    reasons = []
    for server in source["servers"]:
        # One folder a server: bytes of two servers are never joined.
        place = folder() / f"{name}.part" / hashlib.sha256(server.encode()).hexdigest()[:8]
        try:
            for file in source["files"]:
                _download(server + file, place / file, _size_limit(source), progress)
            data = _READERS[source["format"]](place, source)
            _checked(data, source, server)
        except requests.RequestException as error:
            reasons.append(f"{server}: {error}")
        except DamagedDataError as error:
            shutil.rmtree(place, ignore_errors=True)  # or the next call would go on with the same wrong bytes
            reasons.append(f"{server}: not the data set: {error}")
        else:
            _store(name, source, data, place)
            shutil.rmtree(place.parent)
            return
    with contextlib.suppress(OSError):  # there is none, or it holds what can be gone on with
        (folder() / f"{name}.part").rmdir()
    raise _missing(name, source, reasons)


def _store(name, source, data, place):
    if source["kind"] == "images":
        _write_npz(_paths(name, source)[0], data)
    else:
        for path in _paths(name, source):
            files.write(path, (place / path.name).read_bytes())


def _download(url, path, limit, progress):
    """Bring `url` to `path` by way of `path`.part, which is gone on with as long as each attempt brings more."""
    import requests

    part = path.with_name(path.name + ".part")
    for attempt in range(0 if path.exists() else _ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _download_rest(url, part, limit, progress)
        except requests.HTTPError:
            raise  # the server answered, and said no
        except requests.RequestException:
            if attempt + 1 == _ATTEMPTS or not part.exists() or part.stat().st_size <= before:
                raise
        else:
            os.replace(part, path)
            return


def _download_rest(url, part, limit, progress):
    """Ask for what `part` lacks and append it; start afresh where the server sends the whole file or refuses."""
    import requests

    done = part.stat().st_size if part.exists() else 0
    # "identity": a server that packed the archive once more would count the range in other bytes.
    headers = {"User-Agent": "Mozilla/5.0 (compatible; lsbook)", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as answer:
        if done and answer.status_code == 416:  # nothing lies beyond `done`: the part is whole, or of another file
            if answer.headers.get("Content-Range") == f"bytes */{done}":
                return None
            part.unlink()
            return _download_rest(url, part, limit, progress)
        answer.raise_for_status()
        goes_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if answer.status_code == 206 and not goes_on:
            part.unlink(missing_ok=True)
            raise requests.ConnectionError(f"asked for bytes {done}-, got {answer.headers.get('Content-Range')}")
        _append(answer, part, done if goes_on else 0, limit, progress)


@contextlib.contextmanager
def _full_disk_named(part):
    """Say what was being written, where, and what is left, if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = part.stat().st_size if part.exists() else 0
        done = f"{size:,} bytes of it are kept, and the next call goes on from there"
        raise OSError(error.errno, f"no space left for {part.stem} in {part.parent}; {done}") from error


def _append(answer, part, done, limit, progress):
    """Write an answer's bytes to `part` from byte `done` on. Raises if they are too few or too many."""
    import requests
    from tqdm.auto import tqdm

    length = answer.headers.get("Content-Length")
    total = done + int(length) if length else None
    answer.raw.enforce_content_length = False  # urllib3 would throw away the last bytes of an answer that broke off
    part.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem, disable=not progress, leave=False)
    with bar, _full_disk_named(part), open(part, "ab" if done else "wb") as file:
        for chunk in answer.iter_content(2**16):
            done += file.write(chunk)
            bar.update(len(chunk))
            if done > limit:
                raise DamagedDataError(f"{answer.url} sends more than the expected {limit:,} bytes")
    if total is not None and done != total:
        raise requests.ConnectionError(f"the connection broke off after {done:,} of {total:,} bytes")
