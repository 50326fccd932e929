"""Vocabularies: from characters or bytes to small integers and back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from chronograd.data.corpora import Corpus

__all__ = ["ByteVocabulary", "CharVocabulary", "Vocabulary", "tokenize", "vocabulary_from_dict"]


class Vocabulary(Protocol):
    """What training and sampling need of a vocabulary."""

    @property
    def size(self) -> int: ...
    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, tokens: Iterable[int]) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class CharVocabulary:
    """One token for each character, numbered in the order of `characters`.

    Args:
        characters: the characters, each once.
        unknown: one of `characters` that stands for every character not listed; `None` makes such a character
            an error.

    >>> vocabulary = CharVocabulary.from_text("hello")
    >>> vocabulary.characters
    'ehlo'
    >>> vocabulary.encode("hole")
    array([1, 3, 2, 0], dtype=uint8)
    >>> vocabulary.decode([1, 0, 2, 2, 3])
    'hello'
    >>> vocabulary.encode("help")
    Traceback (most recent call last):
    ValueError: character 'p' (U+0070) at position 3 is not in the vocabulary of 4 characters
    """

    characters: str
    unknown: str | None = None

    def __post_init__(self) -> None:
        if not self.characters:
            raise ValueError("a vocabulary needs at least one character")
        repeated = sorted({c for c in self.characters if self.characters.count(c) > 1}) if not self._distinct() else []
        if repeated:
            raise ValueError(f"characters must differ from one another: {repeated[0]!r} appears twice")
        if self.unknown is not None and (len(self.unknown) != 1 or self.unknown not in self.characters):
            raise ValueError(f"unknown={self.unknown!r} must be one of the vocabulary's characters")

    def _distinct(self) -> bool:
        return len(set(self.characters)) == len(self.characters)

    @classmethod
    def from_text(cls, text: str, *, unknown: str | None = None) -> CharVocabulary:
        """The characters of a text, in the order of their code points."""
        return cls("".join(sorted(set(text) | set(unknown or ""))), unknown)

    @property
    def size(self) -> int:
        """The number of characters."""
        return len(self.characters)

    @cached_property
    def dtype(self) -> np.dtype:
        """The smallest of uint8, uint16 and int32 that holds every token."""
        return np.dtype(np.uint8 if self.size <= 256 else np.uint16 if self.size <= 65536 else np.int32)

    @cached_property
    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """The code points in rising order, and the token of each."""
        points = _code_points(self.characters)
        order = np.argsort(points)
        return points[order], order.astype(self.dtype)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: shape `(len(text),)`, the vocabulary's `dtype`.

        Raises:
            ValueError: a character is not in the vocabulary and there is no `unknown` character to stand for
                it.
        """
        points, tokens = self._lookup
        asked = _code_points(text)
        place = np.searchsorted(points, asked).clip(max=self.size - 1)
        found = points[place] == asked
        encoded = tokens[place]
        if not found.all():
            if self.unknown is None:
                at = int(np.argmin(found))
                raise ValueError(
                    f"character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} "
                    f"is not in the vocabulary of {self.size} characters"
                )
            encoded[~found] = self.characters.index(self.unknown)
        return encoded

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a sequence of tokens (a list, an array, a 1-D tensor).

        Raises:
            ValueError: a token is negative or not smaller than `size`.
        """
        numbers = _integers(tokens)
        _check_range(numbers, self.size)
        return "".join(self.characters[i] for i in numbers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for TOML or JSON; `vocabulary_from_dict` is the way back."""
        plain: dict[str, Any] = {"kind": "characters", "characters": self.characters}
        return plain if self.unknown is None else {**plain, "unknown": self.unknown}


@dataclass(frozen=True)
class ByteVocabulary:
    """The 256 bytes of UTF-8: no character is unknown, and a file can be memory-mapped instead of read.

    >>> ByteVocabulary().encode("né")
    array([110, 195, 169], dtype=uint8)
    >>> ByteVocabulary().decode([110, 195, 169])
    'né'
    """

    @property
    def size(self) -> int:
        """256."""
        return 256

    def encode(self, text: str) -> np.ndarray:
        """The bytes of a text in UTF-8, dtype uint8."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).copy()

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a sequence of bytes; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: a token is no byte.
        """
        numbers = _integers(tokens)
        _check_range(numbers, 256)
        return bytes(numbers).decode("utf-8", "replace")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for TOML or JSON."""
        return {"kind": "bytes"}


def vocabulary_from_dict(plain: dict[str, Any]) -> CharVocabulary | ByteVocabulary:
    """The vocabulary that `to_dict` wrote down.

    >>> vocabulary_from_dict({"kind": "characters", "characters": "ab"}).size
    2
    """
    match plain.get("kind"):
        case "characters":
            return CharVocabulary(plain["characters"], plain.get("unknown"))
        case "bytes":
            return ByteVocabulary()
        case kind:
            raise ValueError(f"unknown kind of vocabulary {kind!r}: expected 'characters' or 'bytes'")


def tokenize(corpus: Corpus, vocabulary: CharVocabulary | ByteVocabulary) -> np.ndarray:
    """All tokens of a corpus, shape `(N,)`; a mapped file stays a map and is not read.

    Raises:
        ValueError: a mapped file with a character vocabulary.
    """
    if corpus.raw is not None:
        if not isinstance(vocabulary, ByteVocabulary):
            raise ValueError(f"{corpus.name} is mapped as bytes: use a ByteVocabulary, or load_corpus for characters")
        return corpus.raw
    assert corpus.text is not None
    return vocabulary.encode(corpus.text)


def _code_points(text: str) -> np.ndarray:
    encoding = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"
    return np.frombuffer(text.encode(encoding, "surrogatepass"), dtype=np.uint32)


def _integers(tokens: Iterable[int]) -> Sequence[int]:
    return [int(token) for token in tokens]


def _check_range(numbers: Sequence[int], size: int) -> None:
    for at, number in enumerate(numbers):
        if not 0 <= number < size:
            raise ValueError(f"token {number} at position {at} is outside the vocabulary of {size}")
