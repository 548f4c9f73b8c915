"""Files that appear whole or not at all, and where the book's data lie."""

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
