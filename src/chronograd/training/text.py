"""The text of a run: its tokens, split into what is trained on and what is held out, and its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chronograd.data.corpora import corpus_names, load_corpus, map_corpus
from chronograd.data.streams import split_tokens
from chronograd.data.vocabulary import ByteVocabulary, CharVocabulary, tokenize
from chronograd.training.config import TrainConfig

__all__ = ["HELD_OUT", "RunText", "open_text"]

HELD_OUT = 1 << 18  # tokens of validation at most, so that a huge text does not spend its time there


@dataclass(frozen=True)
class RunText:
    """What a run reads.

    Attributes:
        length: characters, or bytes.
        fingerprint: of the content, as ``Corpus.fingerprint``.
        vocabulary: of the whole text, so that no held-out character is unknown.
        train: integers ``(N,)``, the front.
        held_out: integers ``(M,)``, the last tenth, at most ``HELD_OUT`` tokens.
    """

    length: int
    fingerprint: str
    vocabulary: CharVocabulary | ByteVocabulary
    train: np.ndarray
    held_out: np.ndarray


def open_text(config: TrainConfig) -> RunText:
    """Read the corpus that ``config`` names; under ``tokens="bytes"`` a file is memory-mapped.

    Raises:
        ValueError: the text is empty, too short to hold a part out, or not UTF-8.
        OSError: the file is missing or cannot be read.

    >>> text = open_text(TrainConfig("builtin", preprocess="letters"))
    >>> text.vocabulary.size, len(text.train) + len(text.held_out) == text.length
    (27, True)
    """
    if config.tokens == "bytes":
        vocabulary = ByteVocabulary()
        corpus = load_corpus(config.corpus) if config.corpus in corpus_names() else map_corpus(config.corpus)
    else:
        corpus = load_corpus(config.corpus, preprocess="letters" if config.preprocess == "letters" else None)
        vocabulary = CharVocabulary.from_text(corpus.text or "")
    try:
        train, held_out = split_tokens(tokenize(corpus, vocabulary), at_most=HELD_OUT)
    except ValueError as error:
        raise ValueError(f"{config.corpus}: {error}") from None
    return RunText(len(corpus), corpus.fingerprint, vocabulary, train, held_out)
