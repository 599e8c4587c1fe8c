"""Folders and files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it once everything is in it.

    Threads, processes and machines may make the same folder at once: each has a temporary one of its own, the first to
    end stays, and the others' are thrown away as if they had been it.

    Whoever is killed in between leaves a `.NAME.partial-HOST-PID-RANDOM`. The next to make the folder sweeps it away, but
    only on the same machine: whether a process of another one still lives cannot be told from here.
    """
    # Cloned machines share their name, so it stands beside the network address.
    mine = f".{folder.name}.partial-{socket.gethostname()}-{uuid.getnode():012x}"
    partial = folder.with_name(f"{mine}-{os.getpid()}-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    for path in list(folder.parent.iterdir()):
        found = re.fullmatch(rf"{re.escape(mine)}-(\d+)-[0-9a-f]{{8}}", path.name)
        if found and not _alive(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)
    try:
        yield partial
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another was faster, and it is whole: only a rename makes it appear
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, and rename it once it is written; a broken write leaves what was there.

    Raises:
        OutputError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
