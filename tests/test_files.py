"""Files that appear whole or not at all."""

import errno
import lzma
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.binary(max_size=2000))
def test_packing_loses_nothing(data):
    assert files.unpack(files.pack(data)) == data == lzma.decompress(files.pack(data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "cut off"),
        (lambda data: b"", "cut off"),
        (lambda data: data + b"\0", "longer than it says"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "damaged"),
        (lambda data: b"no xz file", "damaged"),
    ],
)
def test_unpacking_what_is_not_whole(change, words):
    with pytest.raises(ValueError, match=words):
        files.unpack(change(files.pack(bytes(range(256)))))
