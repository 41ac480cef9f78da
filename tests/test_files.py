import errno
import json
import os

import pandas as pd
import pytest
from filelock import FileLock

from utils.cli import AT_END, InputError
from utils.files import (
    atomic_write,
    check_output,
    hidden,
    locked,
    remove_leftovers,
    write_csv,
    write_json,
)


def test_tables_and_json(tmp_path):
    write_csv(tmp_path / "t.csv", pd.DataFrame({"a": [1], "이름": ["x"]}))
    assert (tmp_path / "t.csv").read_bytes() == "a,이름\n1,x\n".encode()
    write_json(tmp_path / "t.json", {"이름": [1, None]})
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == {"이름": [1, None]}


def write_half(path, error):
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("there", [True, False])
def test_a_failed_write_leaves_what_was_there(tmp_path, there):
    path = tmp_path / "table.csv"
    if there:
        path.write_bytes(b"whole")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InputError, match=r"table\.csv: can't be written \(No space left"):
        write_half(path, full)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"whole"] * there


def test_names_of_any_length_and_bytes(tmp_path):
    write_csv(tmp_path / f"{'이' * 80}.csv", pd.DataFrame({"a": ["\udcff"]}))  # 244 bytes
    write_json(tmp_path / "t.json", {"folder": "이\udcff"})
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == {"folder": "이\udcff"}
    assert len(os.listdir(tmp_path)) == 2
    names = {hidden(tmp_path / f"{'a' * 50}{ending}", ".lock") for ending in (".csv", "_sheet.png")}
    assert len(names) == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has locks everywhere")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_and_sync(tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "x.lock", "held"):
        assert "can't be locked" in capsys.readouterr().out
    if code != errno.ENOLCK:
        monkeypatch.setattr("os.fsync", refuse)
    write_json(tmp_path / "t.json", 1)
    assert (tmp_path / "t.json").read_text() == "1\n"


def test_temporary_files_are_removed(tmp_path):
    for name in (".best.pth.1.tmp", ".hidden", "best.pth"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", "best.pth"}


def test_an_output_that_cannot_or_must_not_be_written_is_refused(tmp_path):
    for name in ("run/last.pth", "folder.csv/x", "used/a.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "used/link.csv").symlink_to(tmp_path / "used/a.csv")
    (tmp_path / "used/broken.csv").symlink_to(tmp_path / "nowhere.csv")

    def check(name):
        inputs = [tmp_path / "used/broken.csv", tmp_path / "used/a.csv"]
        with AT_END:
            return check_output(tmp_path / name, [".csv"], inputs, beside=["table.csv"])

    assert check("new/a.csv") == [tmp_path / "new/table.csv"]
    assert not any((tmp_path / "new").iterdir())
    with (
        FileLock(hidden(tmp_path / "new/table.csv", ".lock")),
        pytest.raises(InputError, match="another"),
    ):
        check("new/a.csv")
    for name, message in (
        ("a.txt", r"ends in \.csv"),
        ("table.csv", r"ends in \.csv, and is not table\.csv"),
        ("folder.csv", "not a file"),
        ("run/a.csv", "folder of a run"),
        ("used/a.csv", "read here"),
        ("used/link.csv", "read here"),
        ("used/a.csv/b.csv", "can't be written"),
    ):
        with pytest.raises(InputError, match=message):
            check(name)
