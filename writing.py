"""Folders and files that appear under their name only when they are complete.

Each is made under a temporary name, `.NAME.partial-HOST-PID-RANDOM`, and renamed at the end. Whoever is killed in between
leaves that name behind. The next to make the same thing sweeps it away, but only on the same machine: whether a process of
another one still lives cannot be told from here.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import OutputError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it once everything is in it.

    Threads, processes and machines may make the same folder at once: each has a temporary one of its own, the first to
    end stays, and the others' are thrown away as if they had been it.

    Raises:
        OutputError: The folder cannot be made, or there is no room for what belongs in it.
    """
    with _told(folder), _partial(folder) as partial:
        partial.mkdir(parents=True)
        yield partial
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another was faster, and it is whole: only a rename makes it appear
                raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, and rename it once it is written; a broken write leaves what was there.

    Raises:
        OutputError: The file cannot be written.
    """
    with _told(path), _partial(path) as partial:
        yield partial
        os.replace(partial, path)


def write_whole(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Write files by name into a folder; none appears before all of them have been written in full.

    Raises:
        OutputError: The folder cannot be made or written to. Files that were there before are then as they were.
    """
    paths = {name: folder / name for name in contents}
    with _told(folder), ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        partial = {name: stack.enter_context(_partial(path)) for name, path in paths.items()}
        for name, content in contents.items():
            partial[name].write_bytes(content)
        for name, path in paths.items():
            os.replace(partial[name], path)
    return paths


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses, as one line. Libraries that are not written in Python tell it in words alone."""
    try:
        yield
    except Exception as error:
        why = _refusal(error, path)
        if why is None:
            raise
        raise OutputError(f"{path}: cannot be written ({why}): make room, or choose another place") from None


def _refusal(error: Exception, path: Path) -> str | None:
    """Why the system would not write there; None where the error is about something else."""
    if isinstance(error, OSError) and error.errno is not None:
        about, here = str(error.filename or ""), str(path.parent)
        written_here = bool(about) and (about.startswith(here) or here.startswith(about))
        return os.strerror(error.errno) if written_here or error.errno in _OF_THE_DISK else None
    return next((text for text in map(os.strerror, _OF_THE_DISK) if text in str(error)), None)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A temporary name that is there for nobody after the block; what the dead left under such names is swept first."""
    # Cloned machines share their name, so it stands beside the network address.
    mine = f".{path.name}.partial-{socket.gethostname()}-{uuid.getnode():012x}"
    partial = path.with_name(f"{mine}-{os.getpid()}-{secrets.token_hex(4)}")
    for left in list(path.parent.iterdir()) if path.parent.is_dir() else ():
        found = re.fullmatch(rf"{re.escape(mine)}-(\d+)-[0-9a-f]{{8}}", left.name)
        if found and not _alive(int(found[1])):
            _remove(left)
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
