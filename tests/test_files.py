"""Files that appear whole or not at all."""

import errno
import os

import pytest

from lsbook import files


def test_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("LSBOOK_RUNS_DATA", raising=False)
    assert (files.data_folder() / "paper.toml").is_file()
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path))
    assert files.data_folder() == tmp_path
    monkeypatch.setenv("LSBOOK_RUNS_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/absent: .*LSBOOK_RUNS_DATA"):
        files.data_folder()


def test_write_makes_the_folder_and_leaves_nothing_else(tmp_path):
    files.write(tmp_path / "a" / "b" / "c.bin", b"123")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"123"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c.bin"]
    assert oct((tmp_path / "a" / "b" / "c.bin").stat().st_mode)[-3:] == "644"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    files.write(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"no space left for x \(1,000 bytes\) in .*; nothing was written") as caught:
        files.write(tmp_path / "x", b"n" * 1000)
    assert caught.value.errno == errno.ENOSPC
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_other_errors_pass_through(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError):
        files.write(tmp_path / "file" / "x", b"")
