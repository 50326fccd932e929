"""Corpora: named texts, files and streams, read whole as text or mapped as bytes.

A corpus is either text (characters in memory) or, for files larger than memory, a memory map of bytes. Its
fingerprint names the content, so that a resumed run can tell that it still reads the same text.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from chronograd.data.builtin import builtin_text

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Corpus", "corpus_names", "letters", "load_corpus", "map_corpus"]

_TIMEMACHINE_URL = "http://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt"
_TIMEMACHINE_SHA1 = "090b5e7e70c295757f55df93cb0a180b9691891a"
_EDGE = 1 << 20  # bytes read from each end of a mapped file for its fingerprint


@dataclass(frozen=True)
class Corpus:
    """A text under a name.

    Attributes:
        name: what was asked for: `"timemachine"`, `"builtin"`, or the file's path.
        text: the characters; `None` for a mapped file.
        raw: the bytes as a read-only memory map, dtype uint8, shape `(N,)`; `None` for a text.
        fingerprint: `"sha1:…"` of the text in UTF-8; for a mapped file `"sha1-ends:…"`, taken of its size and
            of its first and last MiB only, so that opening it does not read it through.
    """

    name: str
    text: str | None
    raw: np.ndarray | None = field(compare=False)
    fingerprint: str

    def __len__(self) -> int:
        """Characters of a text, bytes of a mapped file."""
        return len(self.text if self.text is not None else self.raw)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        unit = "characters" if self.text is not None else "bytes"
        return f"Corpus({self.name!r}, {len(self):,} {unit}, {self.fingerprint})"


def corpus_names() -> tuple[str, ...]:
    """The names `load_corpus` knows besides paths.

    >>> corpus_names()
    ('builtin', 'timemachine')
    """
    return ("builtin", "timemachine")


def letters(text: str) -> str:
    """Only the letters a-z in lower case, every run of anything else one space: at most 27 different
    characters.

    This is the preprocessing of the textbook's language-model chapters (Dive into Deep Learning).

    >>> letters("The Time Traveller (for so it will be")
    'the time traveller for so it will be'
    """
    return re.sub("[^A-Za-z]+", " ", text).lower()


def load_corpus(source: str | os.PathLike[str] | IO[Any], *, preprocess: Literal["letters"] | None = None) -> Corpus:
    """Read a corpus whole, as text.

    Args:
        source: `"builtin"` (no network), `"timemachine"` (H. G. Wells, fetched once with pooch and cached),
            the path of a UTF-8 file, or an open stream of text or of UTF-8 bytes. The names win over files of
            the same name; write `./builtin` for the file.
        preprocess: `"letters"` for lower-case letters and spaces only, see `letters`; `None` keeps every
            character.

    Raises:
        ValueError: the text is empty, not UTF-8 (the message names the byte), or the download is corrupt.
        OSError: the file is missing, is a directory, cannot be read; or there is no network.

    >>> corpus = load_corpus("builtin", preprocess="letters")
    >>> len(set(corpus.text))
    27
    >>> import io
    >>> load_corpus(io.StringIO("Was it a car or a cat I saw?"))
    Corpus('stream', 28 characters, sha1:...)
    """
    if preprocess not in (None, "letters"):
        raise ValueError(f"unknown preprocessing {preprocess!r}: choose 'letters' or None")
    name, text = _read(source)
    if preprocess == "letters":
        text = letters(text)
    if not text.strip():
        what = "has no text" if not text or preprocess is None else "has no letters A-Z"
        raise ValueError(f"{name}: the corpus {what}: give a text with at least a few characters")
    return Corpus(name, text, None, "sha1:" + hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest())


def map_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Open a file of any size as bytes, without reading it: for texts larger than memory.

    Raises:
        ValueError: the file is empty.
        OSError: the file is missing, is a directory or not a regular file, or cannot be read.
    """
    import numpy as np

    path = _existing_file(path)
    if not path.is_file():
        raise OSError(f"{path}: only a regular file can be mapped into memory; read it with load_corpus instead")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path}: the corpus has no text: the file is empty")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    digest = hashlib.sha1(str(size).encode())
    digest.update(raw[:_EDGE].tobytes())
    digest.update(raw[-_EDGE:].tobytes())
    return Corpus(str(path), None, raw, "sha1-ends:" + digest.hexdigest())


def _read(source: str | os.PathLike[str] | IO[Any]) -> tuple[str, str]:
    """The name and the text of a source."""
    if not isinstance(source, (str, os.PathLike)):
        name = getattr(source, "name", "stream")
        content = source.read()
        return str(name), content if isinstance(content, str) else _decode(content, str(name))
    named: dict[str, Callable[[], str]] = {"builtin": builtin_text, "timemachine": _timemachine}
    if isinstance(source, str) and source in named:
        return source, named[source]()
    path = _existing_file(source)
    return str(path), _decode(path.read_bytes(), str(path))


def _existing_file(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, not a text file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, and no corpus of that name ({', '.join(corpus_names())})")
    return path


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")  # a byte order mark is no character of the text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: not UTF-8 at byte {error.start} (0x{content[error.start]:02x}): "
            "convert the file, or read it as bytes"
        ) from None


def _timemachine() -> str:
    path = _fetch("timemachine", _TIMEMACHINE_URL, _TIMEMACHINE_SHA1)
    return _decode(path.read_bytes(), "timemachine")


def _fetch(name: str, url: str, sha1: str) -> Path:
    """The cached file behind `url`, downloaded if absent; whatever goes wrong, no part of a file stays
    behind.

    The cache is the user's cache folder, or the folder that the environment variable CHRONOGRAD_CACHE names.
    """
    try:
        import pooch
    except ImportError:
        raise ImportError(f"fetching {name!r} needs pooch: pip install 'chronograd[data]'") from None
    import logging

    folder = os.environ.get("CHRONOGRAD_CACHE") or pooch.os_cache("chronograd")
    pooch.get_logger().setLevel(logging.ERROR)  # its lines are not ours; errors come as exceptions
    try:
        path = pooch.retrieve(url, known_hash=f"sha1:{sha1}", fname=f"{name}.txt", path=folder)
    except ValueError:
        raise ValueError(f"{name}: the download from {url} is corrupt (its SHA-1 is not {sha1}): try again") from None
    except OSError as error:  # every error of requests is one
        if isinstance(error, PermissionError):
            raise OSError(
                f"{name}: cannot write the cache folder {folder}: set CHRONOGRAD_CACHE to another one"
            ) from None
        raise ConnectionError(
            f"{name}: cannot fetch {url} ({type(error).__name__}): is there a network? 'builtin' needs none"
        ) from None
    return Path(path)
