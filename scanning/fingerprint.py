"""The hash that names a checkpoint by its files. It reads bytes and trusts none, so a damaged checkpoint has one too."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..errors import CheckpointError

DIGITS = 16


def fingerprint(path: Path) -> str:
    """Hash over names, sizes and bytes of all files in a folder at any depth, or of a single file.

    Where the folder lies and what it is called leaves no mark. Names that begin with a dot are passed over: what
    version control, editors and half-written copies leave there is no part of a model.

    Raises:
        CheckpointError: There is nothing at this path, or a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = [(path.name, path)] if path.is_file() else _files(path)
        for name, file in files:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
                # A name may hold anything but a slash and NUL: NUL keeps it apart from what follows.
                digest.update(os.fsencode(name) + f"\0{stream.tell()}\0{content}\n".encode())
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()[:DIGITS]


def _files(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder (for a hub id, give owner/name)")
    found: list[tuple[str, Path]] = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(here, name)
            # A pipe would never end and a broken link has no bytes; neither is opened by any loader.
            if not name.startswith(".") and file.is_file():
                found.append((file.relative_to(folder).as_posix(), file))
    return sorted(found)
