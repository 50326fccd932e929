"""The log: one JSON object a line, whole after a crash, cut back where a run goes on."""

import json

import pytest

from chronograd.training.metrics import append_metrics, cut_metrics, read_metrics


def test_lines_are_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    entries = [{"step": 1, "loss": 0.1, "note": "line\nbreak \u2028 ü"}, {"step": 2, "loss": 1e-300}]
    for entry in entries:
        append_metrics(path, entry)
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == entries == read_metrics(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused_and_not_written(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1})
    with pytest.raises(ValueError):
        append_metrics(path, {"loss": value})
    assert read_metrics(path) == [{"step": 1}]


def test_a_last_line_cut_short_is_left_out_and_cut_away(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(path, {"step": step, "loss": 0.5})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        ended = [{"step": step, "loss": 0.5} for step in (1, 2, 3)][: (length + 1) // (len(whole) // 3)]
        assert read_metrics(path) == ended
        cut_metrics(path, 3)
        append_metrics(path, {"step": 9})
        assert read_metrics(path) == [*ended, {"step": 9}]


def test_what_came_after_a_step_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    cut_metrics(path, 5)
    assert not path.exists()
    for step in (1, 2, 2, 3):
        append_metrics(path, {"step": step})
    cut_metrics(path, 2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 2}]
    cut_metrics(path, 0)
    assert read_metrics(path) == []
