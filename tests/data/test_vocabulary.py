"""Vocabularies: there and back, and a clear word about what is not in them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chronograd.data.corpora import load_corpus, map_corpus
from chronograd.data.vocabulary import ByteVocabulary, CharVocabulary, tokenize, vocabulary_from_dict

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(TEXTS)
def test_characters_there_and_back(text):
    vocabulary = CharVocabulary.from_text(text)
    tokens = vocabulary.encode(text)
    assert [vocabulary.characters[i] for i in tokens] == list(text)
    assert vocabulary.decode(tokens) == text
    assert list(vocabulary.characters) == sorted(set(text))


@given(TEXTS)
def test_bytes_there_and_back(text):
    tokens = ByteVocabulary().encode(text)
    assert bytes(tokens.tolist()) == text.encode()
    assert ByteVocabulary().decode(tokens) == text


def test_order_of_characters_is_kept_when_given():
    vocabulary = CharVocabulary("zax")
    assert vocabulary.encode("axz").tolist() == [1, 2, 0]


@pytest.mark.parametrize("size, dtype", [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)])
def test_smallest_dtype(size, dtype):
    characters = "".join(chr(0x10000 + i) for i in range(size))
    vocabulary = CharVocabulary(characters)
    tokens = vocabulary.encode(characters)
    assert tokens.dtype == dtype and tokens.tolist() == list(range(size))


def test_decode_takes_lists_arrays_and_tensors():
    vocabulary = CharVocabulary("ab")
    for tokens in ([1, 0], np.array([1, 0]), torch.tensor([1, 0])):
        assert vocabulary.decode(tokens) == "ba"


def test_unknown_character_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\) at position 3 .* 27 characters"):
        CharVocabulary.from_text("abcdefghijklmnopqrstuvwxyz ").encode("café é")


def test_unknown_beyond_the_last_code_point():
    with pytest.raises(ValueError, match="'z'.* at position 0"):
        CharVocabulary("abc").encode("z")


def test_unknown_can_stand_for_the_rest():
    vocabulary = CharVocabulary.from_text("ab", unknown="?")
    assert vocabulary.decode(vocabulary.encode("abéa")) == "ab?a"


@pytest.mark.parametrize(
    "arguments, match",
    [(("",), "at least one"), (("aba",), "'a' appears twice"), (("ab", "c"), "unknown='c'")],
)
def test_bad_vocabularies(arguments, match):
    with pytest.raises(ValueError, match=match):
        CharVocabulary(*arguments)


@pytest.mark.parametrize("vocabulary", [CharVocabulary("ab"), ByteVocabulary()])
@pytest.mark.parametrize("token", [-1, 256])
def test_tokens_out_of_range(vocabulary, token):
    with pytest.raises(ValueError, match=f"token {token} at position 1"):
        vocabulary.decode([0, token])


@pytest.mark.parametrize("vocabulary", [CharVocabulary('a"\\\n é🙂'), CharVocabulary("ab?", "?"), ByteVocabulary()])
def test_dict_there_and_back_through_json(vocabulary):
    assert vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_dict_of_unknown_kind():
    with pytest.raises(ValueError, match="'words'"):
        vocabulary_from_dict({"kind": "words"})


def test_tokenize(tmp_path):
    (tmp_path / "text").write_text("abba")
    text = load_corpus(tmp_path / "text")
    assert tokenize(text, CharVocabulary("ab")).tolist() == [0, 1, 1, 0]
    assert tokenize(text, ByteVocabulary()).tolist() == list(b"abba")
    mapped = map_corpus(tmp_path / "text")
    assert tokenize(mapped, ByteVocabulary()) is mapped.raw
    with pytest.raises(ValueError, match="mapped as bytes"):
        tokenize(mapped, CharVocabulary("ab"))
