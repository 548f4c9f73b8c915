"""Files that appear whole or not at all, files of others that are read without trust, and where the book's data lie."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path


def data_folder():
    """Folder `data` of the checkout, or LSBOOK_RUNS_DATA where that is set. Raises FileNotFoundError if absent."""
    folder = Path(os.environ.get("LSBOOK_RUNS_DATA") or Path(__file__).parents[1] / "data")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: run from a checkout of the book, or set LSBOOK_RUNS_DATA to its 'data' folder"
        )
    return folder


@contextmanager
def _or_nothing(part, path, size):
    """Remove `part` if the block fails; if it is for a full disk, say of what."""
    try:
        yield
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"{path.name} ({size:,} bytes) in {path.parent}"
            raise OSError(error.errno, f"no space left for {what}; nothing was written") from error
        raise


def stage(path, data):
    """Write bytes beside `path`, under a name that starts with a dot, and return that name; makes the folder.

    The next call for the same path overwrites what a killed one has left. Whoever writes a path holds its lock.
    Raises OSError if the disk is full, naming folder and size; then nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with _or_nothing(part, path, len(data)), open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return part


def write(path, data):
    """Write bytes so that `path` is either absent (or as it was) or complete. Raises OSError as `stage` does."""
    path = Path(path)
    part = stage(path, data)
    with _or_nothing(part, path, len(data)):
        os.replace(part, path)


def pack(data):
    """Bytes as an .xz file holds them. Made for arrays of two-byte numbers, of which the rest of the book's are few."""
    import lzma

    pairs = {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 2, "lp": 1, "pb": 1}  # first and second bytes apart
    return lzma.compress(data, lzma.FORMAT_XZ, filters=[pairs])


def unpack(data):
    """The bytes that an .xz file holds. Raises ValueError if it is cut off, damaged, or goes on after its end."""
    import lzma

    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        content = reader.decompress(data)
    except lzma.LZMAError as error:
        raise ValueError(f"this .xz file is damaged or cut off ({error})") from error
    if not reader.eof or reader.unused_data:
        raise ValueError("this .xz file is " + ("longer than it says" if reader.eof else "damaged or cut off"))
    return content


@contextmanager
def about(path):
    """Within a with block, put the file's name before what a TypeError or ValueError says; it becomes a ValueError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def open_npz(file):
    """The archive in an open binary file, as `numpy.load` gives it. Pickled objects in it are never loaded.

    Raises ValueError if it is no .npz file, or damaged.
    """
    import numpy as np

    if file.read(2) != b"PK":
        raise ValueError("this is no .npz file, as numpy.savez writes it (it does not start like a zip archive)")
    file.seek(0)
    try:
        return np.load(file, allow_pickle=False)
    except Exception as error:  # damaged bytes make zipfile raise many kinds
        raise ValueError(f"this .npz file is damaged or cut off ({type(error).__name__})") from error


def npz_array(archive, name, kind):
    """The array `name` of an archive of `open_npz`; `kind` says in words what its numbers should be.

    Raises ValueError for pickled objects, for damaged bytes, and for what is no array.
    """
    import numpy as np

    try:
        array = archive[name]
    except Exception as error:  # zipfile, zlib and numpy's header reader raise many kinds
        if "Object arrays" in str(error):
            given = "got pickled Python objects, which are never loaded"
            raise ValueError(f"{name} must be {kind}, {given}: save np.array(…) of plain values") from error
        raise ValueError(f"{name} is damaged, or larger than memory ({type(error).__name__})") from error
    if not isinstance(array, np.ndarray):  # numpy hands over what it does not know as bytes
        raise ValueError(f"{name} must be an array that numpy.savez wrote, got {len(array)} other bytes")
    return array


def holds(names):
    """The names of what a file holds, the first twelve of them, in words."""
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "") or "nothing"
