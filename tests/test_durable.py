"""A file is replaced whole or not at all, whatever ends the writer."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pfl import durable

OTHER_LIFE = "0" * 8  # as if an earlier process had our id


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_parts_are_joined_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, b"ab", memoryview(b"cd"), b"", memoryview(bytearray(b"ef")))
    assert path.read_bytes() == b"abcdef"
    durable.write(path)
    assert path.read_bytes() == b""
    assert names(tmp_path) == ["file"]


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o666)
    durable.write(path, b"secret", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_before_is_kept_where_asked(tmp_path: Path) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    durable.write(path, b"1", previous=previous)
    assert names(tmp_path) == ["file"]
    durable.write(path, b"2", previous=previous)
    durable.write(path, b"3", previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")


def test_the_file_before_is_kept_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    path, previous = tmp_path / "file", tmp_path / "previous"
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for content in (b"1", b"2", b"3"):
        durable.write(path, content, previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert names(tmp_path) == ["file", "previous"]


def test_a_crash_before_the_last_rename_leaves_the_old_file_under_both_names_and_no_temporary_later(
    tmp_path: Path,
) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    path.write_bytes(b"1")
    previous.hardlink_to(path)
    durable.write(path, b"2", previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    assert names(tmp_path) == ["file", "previous"]


@pytest.mark.parametrize("life", [f"{os.getpid()}-{OTHER_LIFE}-0", "4194999-12345678-7"])
def test_what_a_dead_writer_left_is_removed(tmp_path: Path, life: str) -> None:
    stale = tmp_path / f".file.{life}.tmp"
    stale.write_bytes(b"half")
    durable.write(tmp_path / "file", b"whole")
    assert names(tmp_path) == ["file"]


def test_what_is_anothers_stays(tmp_path: Path) -> None:
    living = f".file.{os.getppid()}-{OTHER_LIFE}-0.tmp"
    others = [living, ".file.txt.tmp", f".other.4194999-{OTHER_LIFE}-0.tmp", "file.tmp"]
    for name in others:
        (tmp_path / name).touch()
    durable.write(tmp_path / "file", b"whole")
    assert names(tmp_path) == sorted([*others, "file"])


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.write(tmp_path / "none" / "file", b"x")


def test_what_cannot_take_its_place_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        durable.write(tmp_path / "file", b"x")
    assert names(tmp_path) == ["file"]


LIMITED = """
import os, resource, signal, sys
from pathlib import Path
from p2pfl import durable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    durable.write(Path(sys.argv[1]), b"n" * 60, b"n" * 60)
except OSError as error:
    print(error.errno)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are of POSIX")
def test_a_disk_that_is_full_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (f"{errno.EFBIG}\n", "")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: durable.write(path, content), contents * 4))
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["file"]
