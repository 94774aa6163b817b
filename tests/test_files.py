"""Files are written whole or not at all."""

import os
import platform
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lstm_utils import files
from lstm_utils.files import whole_file, write_whole


def test_text_and_bytes_arrive_and_nothing_else_is_left(tmp_path):
    write_whole(tmp_path / "a.txt", "Größe\n")
    write_whole(str(tmp_path / "b.bin"), b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_place_keeps_the_ending_and_lies_in_the_same_folder(tmp_path):
    with whole_file(tmp_path / "model.onnx") as half:
        assert half.suffix == ".onnx"
        assert half.parent == tmp_path
        half.write_text("x", encoding="utf-8")
        assert not (tmp_path / "model.onnx").exists()


def test_a_failure_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "before")

    def fail():
        with whole_file(path) as half:
            half.write_text("half", encoding="utf-8")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [("a.txt", "before")]


def test_a_killed_process_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "before")
    program = (
        "import os, signal, sys; from lstm_utils.files import whole_file\n"
        "with whole_file(sys.argv[1]) as half:\n"
        "    half.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text(encoding="utf-8") == "before"


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist; create it, or name another"):
        write_whole(tmp_path / "nowhere" / "a.txt", "x")


@pytest.fixture
def living():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.communicate(b"\n")
    assert process.returncode == 0, "nobody but the fixture may end it"


@pytest.mark.parametrize(("system", "taken_away"), [("posix", True), ("nt", False)])
def test_what_a_dead_process_left_is_taken_away_where_one_can_ask_for_it(
    living, tmp_path, monkeypatch, system, taken_away
):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = {
        writer: tmp_path / f".a.{platform.node()}.{writer}.txt" for writer in (dead.pid, living.pid, 10**30, "notes")
    }
    for path in left.values():
        path.touch()
    monkeypatch.setattr(files, "os", SimpleNamespace(name=system, kill=os.kill, getpid=os.getpid))
    write_whole(tmp_path / "a.txt", "x")
    assert {writer for writer, path in left.items() if not path.exists()} == ({dead.pid} if taken_away else set())
