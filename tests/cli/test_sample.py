"""Sampling from the command line."""

from __future__ import annotations


def test_the_prefix_and_so_many_characters_more(cli, trained):
    code, out, err = cli("sample", "run", "--prefix", "the quick", "--length", "30", "--seed", "1")
    assert (code, err) == (0, "")
    assert out.startswith("the quick") and len(out) == len("the quick") + 30 + 1


def test_without_a_prefix_it_begins_by_itself(cli, trained):
    code, out, _ = cli("sample", "run", "--length", "30")
    assert (code, len(out)) == (0, 31)


def test_the_seed_decides(cli, trained):
    first, again, other = (cli("sample", "run", "--length", "40", "--seed", seed).out for seed in "112")
    assert first == again != other


def test_the_likeliest_text_needs_no_seed(cli, trained):
    assert cli("sample", "run", "--temperature", "0").out == cli("sample", "run", "--temperature", "0").out


def test_a_character_the_run_never_saw(cli, trained):
    code, out, err = cli("sample", "run", "--prefix", "x\u00e9")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "'\u00e9'" in err and "not in the vocabulary" in err


def test_a_damaged_run(cli, trained):
    (trained / "model.safetensors").write_bytes(b"nonsense")
    code, out, err = cli("sample", "run")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "model.safetensors: damaged" in err
    (trained / "config.toml").write_text("][")
    assert "config.toml: damaged" in cli("sample", "run").err
