"""Sampling against torch.nn and against known distributions; and what is refused."""

import math
from collections import Counter

import pytest
import torch

from chronograd.data.vocabulary import ByteVocabulary, CharVocabulary
from chronograd.training.config import TrainConfig
from chronograd.training.model import CharModel
from chronograd.training.run_folder import TrainedRun
from chronograd.training.sampling import sample


def run_with(vocabulary, cell="gru", **settings) -> TrainedRun:
    model = CharModel(vocabulary.size, cell, hidden=6).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # initial parameters say much the same everywhere
    return TrainedRun(model, vocabulary, TrainConfig("builtin", **settings))


@pytest.fixture
def run() -> TrainedRun:
    return run_with(CharVocabulary("abcdefgh"))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_greedy_text_is_that_of_reading_everything_again_each_time(cell, make_twin):
    run = run_with(CharVocabulary("abcdefgh"), cell)
    twin = make_twin(run.model)
    text = "hag"
    with torch.no_grad():
        for _ in range(40):
            tokens = torch.tensor(["abcdefgh".index(c) for c in text]).unsqueeze(1)
            text += "abcdefgh"[int(twin(tokens, None)[0][-1, 0].argmax())]
    assert sample(run, "hag", 40, temperature=0) == text[3:]
    assert sample(run, "hag", 40, temperature=1e-300, seed=1) == text[3:]
    assert sample(run, "hag", 0) == ""


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_the_softmax_of_scores_over_temperature(temperature):
    run = run_with(CharVocabulary("abcd"))
    scores = [0.0, 1.0, -0.5, 2.0]
    with torch.no_grad():
        run.model.readout.weight.zero_()
        run.model.readout.bias.copy_(torch.tensor(scores))
    count = 2000
    counts = Counter(sample(run, "a", count, temperature, seed=7))
    powers = [math.exp(score / temperature) for score in scores]
    for character, power in zip("abcd", powers, strict=True):
        p = power / sum(powers)
        assert abs(counts[character] - count * p) < 4 * math.sqrt(count * p * (1 - p))


def test_a_seed_gives_the_same_text_and_leaves_torchs_generator_alone(run):
    before = torch.get_rng_state()
    text = sample(run, "abc", 50, seed=5)
    assert text == sample(run, "abc", 50, seed=5) != sample(run, "abc", 50, seed=6)
    assert torch.equal(torch.get_rng_state(), before)
    without = sample(run, "abc", 50)
    torch.set_rng_state(before)
    assert sample(run, "abc", 50) == without != text


def test_the_prefix_matters_and_the_model_is_left_as_it_was(run):
    assert sample(run, "abc", 30, temperature=0) != sample(run, "hhh", 30, temperature=0)
    assert run.model.training
    run.model.eval()
    sample(run, "abc", 2)
    assert not run.model.training and torch.is_grad_enabled()


def test_bytes_become_text_again():
    run = run_with(ByteVocabulary())
    with torch.no_grad():
        run.model.readout.weight.zero_()
        run.model.readout.bias.zero_()
        run.model.readout.bias[ord("z")] = 50
    assert sample(run, "né", 3) == "zzz"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prefix": ""}, "prefix is empty: give at least one character"),
        ({"prefix": "abx"}, "prefix: character 'x' (U+0078) at position 2 is not in the vocabulary of 8 characters"),
        ({"length": -1}, "length must be a whole number of tokens, not -1"),
        ({"length": 2.5}, "length must be a whole number of tokens, not 2.5"),
        ({"temperature": -0.1}, "temperature must be a positive number, or 0 for the likeliest token, not -0.1"),
        ({"temperature": math.nan}, "temperature must be a positive number"),
        ({"temperature": math.inf}, "temperature must be a positive number"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(run, arguments, says):
    with pytest.raises(ValueError) as no:
        sample(run, **{"prefix": "abc", "length": 5, **arguments})
    assert says in str(no.value) and "\n" not in str(no.value)


def test_a_run_on_letters_says_which_it_knows():
    run = run_with(CharVocabulary(" abcdefgh"), preprocess="letters")
    with pytest.raises(ValueError, match=r"'H' \(U\+0048\) at position 0 .*; this run knows only a-z and the space"):
        sample(run, "Had", 3)


def test_a_diverged_model_is_told(run):
    with torch.no_grad():
        run.model.readout.bias[0] = math.nan
    for temperature in (0, 1):
        with pytest.raises(FloatingPointError, match="scores are not finite"):
            sample(run, "abc", 3, temperature)
    assert run.model.training
