"""Files that appear whole or not at all, and where the book's data lie."""

import errno
import os
import tempfile
from pathlib import Path


def data_folder():
    """Folder `data` of the checkout, or LSBOOK_RUNS_DATA where that is set. Raises FileNotFoundError if absent."""
    folder = Path(os.environ.get("LSBOOK_RUNS_DATA") or Path(__file__).parents[1] / "data")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: run from a checkout of the book, or set LSBOOK_RUNS_DATA to its 'data' folder"
        )
    return folder


def write(path, data):
    """Write bytes so that `path` is either absent (or as it was) or complete; makes the folder if there is none.

    Raises OSError if the disk is full, naming folder and size; then nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(path, data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"{path.name} ({len(data):,} bytes) in {path.parent}"
            raise OSError(error.errno, f"no space left for {what}; nothing was written") from error
        raise


def _write(path, data):
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
