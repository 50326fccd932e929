"""Settings: refused early and by name; written as TOML that the standard library reads back."""

import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronograd.training.config import TrainConfig, to_toml

VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES))
def test_toml_reads_back_to_the_same_values(table):
    back = tomllib.loads(to_toml({"one": table, "two": table}))
    assert back == {"one": table, "two": table}
    assert [type(value) for value in back["one"].values()] == [type(value) for value in table.values()]


def test_every_character_survives_toml():
    text = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    assert tomllib.loads(to_toml({"v": {"characters": text}}))["v"]["characters"] == text


def test_a_config_comes_back_from_its_toml():
    config = TrainConfig('a "path"\\with\nodd names', lr=1e-5, truncation="window:5,50", seed=2**63 - 1)
    assert TrainConfig.from_dict(tomllib.loads(to_toml({"run": config.to_dict()}))["run"]) == config


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"corpus": ""}, "corpus must be a corpus name or a path, not ''"),
        ({"preprocess": "words"}, "preprocess must be one of '', 'letters', not 'words'"),
        ({"tokens": "words"}, "tokens must be one of 'characters', 'bytes', not 'words'"),
        ({"model": "transformer"}, "model must be one of 'rnn', 'gru', 'lstm', not 'transformer'"),
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        ({"layers": True}, "layers must be at least 1, not True"),
        ({"batch": 2.0}, "batch must be at least 1, not 2.0"),
        ({"steps": -1}, "steps must be at least 1, not -1"),
        ({"lr": float("nan")}, "lr must be a positive number of at most 1e+37, not nan"),
        ({"lr": "fast"}, "lr must be a positive number of at most 1e+37, not 'fast'"),
        ({"lr": 1e38}, "lr must be a positive number of at most 1e+37, not 1e+38"),
        ({"clip": -0.5}, "clip must be a positive number, or 0 not to clip, not -0.5"),
        ({"seed": -1}, "seed must be a whole number between 0 and"),
        ({"seed": 1.5}, "seed must be a whole number between 0 and"),
        ({"truncation": "chunks:0"}, "k must be"),
        ({"truncation": "chunk"}, "truncation 'chunk' is not understood"),
        ({"mode": "backwards"}, "mode 'backwards' is not understood"),
        ({"tokens": "bytes", "preprocess": "letters"}, "preprocess needs characters"),
    ],
)
def test_settings_out_of_range_are_named_in_one_line(setting, says):
    with pytest.raises(ValueError) as no:
        TrainConfig(**{"corpus": "builtin", **setting})
    assert says in str(no.value) and "\n" not in str(no.value)


def test_unknown_and_missing_names_are_told():
    with pytest.raises(ValueError, match="unknown setting 'hiden'"):
        TrainConfig.from_dict({"corpus": "builtin", "hiden": 3})
    with pytest.raises(ValueError, match="the setting 'corpus' is missing"):
        TrainConfig.from_dict({"hidden": 3})


def test_settings_are_checked_without_torch():
    code = "import sys, chronograd.training.config as c; c.TrainConfig('builtin'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
