"""Files that are whole or absent: whoever opens the path finds the old content or the new, never a part."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["TEMPORARY", "sync_folder", "temporary_beside", "write_atomically"]

TEMPORARY = ".tmp-"  # the start of every temporary file's name


def write_atomically(path: str | os.PathLike[str], write: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash at any moment leaves the old file or the new one.

    Args:
        path: where the file shall be; its folder must exist.
        write: the content, or a function that writes it into the open binary file it is given.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes its place by a
    rename; the folder is flushed too. If anything fails, the temporary file is removed and the error raised.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no finished file has."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    with suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
