"""Whatever is asked wrongly: one line that names it, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

import http.server
import os
import threading
import warnings

import pytest

from chronograd.data import corpora

SHORT = "train text.txt --run r"

# what is typed, the exit code, and what the line must say
WRONG = [
    ("trian", 2, "did you mean 'train'?"),
    ("--nope", 2, "unknown option --nope"),
    ("figure strategy", 2, "did you mean 'strategies'?"),
    ("train", 2, "CORPUS is missing"),
    ("train text.txt", 2, "--run is missing"),
    ("train text.txt --run", 2, "--run needs a value"),
    (f"{SHORT} --hiden 3", 2, "unknown option --hiden; did you mean '--hidden'?"),
    (f"{SHORT} more", 2, "'more' is one argument too many"),
    (f"{SHORT} --run q", 2, "--run is given more than once"),
    (f"{SHORT} --hidden x", 2, "--hidden must be a whole number, not 'x'"),
    (f"{SHORT} --hidden 1.5", 2, "--hidden must be a whole number, not '1.5'"),
    (f"{SHORT} --hidden 0", 2, "--hidden must be at least 1, not 0"),
    (f"{SHORT} --checkpoint-every 0", 2, "--checkpoint-every must be at least 1"),
    (f"{SHORT} --lr fast", 2, "--lr must be a number, not 'fast'"),
    (f"{SHORT} --lr nan", 2, "--lr must be a positive number"),
    (f"{SHORT} --clip -1", 2, "--clip must be"),
    (f"{SHORT} --seed -1", 2, "--seed must be"),
    (f"{SHORT} --model gruu", 2, "did you mean 'gru'?"),
    (f"{SHORT} --resume maybe", 2, "--resume must be one of auto, never"),
    (f"{SHORT} --json=maybe", 2, "--json takes no value"),
    (f"{SHORT} --mode revers", 2, "reverse"),
    (f"{SHORT} --tokens bytes --preprocess letters", 2, "preprocess needs characters"),
    (f"{SHORT} --truncation chunks:0", 2, "k must be at least 1, not 0"),
    (f"{SHORT} --truncation chunks:x", 2, "'x' is not a whole number"),
    (f"{SHORT} --truncation chunk:35", 2, "did you mean 'chunks:35'?"),
    (f"{SHORT} --truncation Windows(5,50)", 2, "did you mean 'window:5,50'?"),
    (f"{SHORT} --truncation 35", 2, "write full, chunks:K"),
    (f"{SHORT} --truncation random:1", 2, "above 1"),
    ("train nothing.txt --run r", 1, "nothing.txt: no such file"),
    ("train . --run r", 1, "is a folder"),
    ("train empty.txt --run r", 1, "empty.txt"),
    ("train empty.txt --run r --tokens bytes", 1, "empty.txt"),
    ("train latin.txt --run r", 1, "latin.txt: not UTF-8 at byte 3"),
    ("train short.txt --run r", 1, "give a longer text"),
    ("train text.txt --run text.txt", 1, "text.txt: is a file"),
    ("train text.txt --run full", 1, "holds other files"),
    ("sample", 2, "DIR is missing"),
    ("sample nothing", 1, "nothing: holds no run"),
    ("sample full --length 0", 2, "--length must be at least 1"),
    ("sample full --length 1e3", 2, "--length must be a whole number"),
    ("sample full --temperature -1", 2, "--temperature must be"),
    ("sample full --prefix=", 2, "--prefix is empty"),
    ("sample full --seed -1", 2, "--seed must lie"),
    ("figure strategies a b", 2, "quotes"),
    ("figure strategies abc --corpus text.txt", 2, "not both"),
    ("figure strategies abc --steps 4", 2, "--steps 4 is more than the 3 characters"),
    ("figure strategies --corpus text.txt --steps 2500", 2, "at most 2000 characters"),
    ("figure strategies --corpus latin.txt", 1, "latin.txt: not UTF-8"),
    ("figure strategies --chunks 0", 2, "--chunks must be at least 1"),
    ("figure strategies --mean-length 1", 2, "--mean-length must be above 1"),
    ("figure strategies --mean-length nan", 2, "--mean-length must be above 1"),
    ("figure strategies --width 0", 2, "--width must be at least 1"),
    ("figure strategies --out picture.pdf", 2, ".svg or .png"),
    ("figure strategies --out nowhere/picture.svg", 1, "nowhere does not exist"),
    ("figure graph --steps 0", 2, "--steps must be at least 1"),
    ("figure graph --steps 1000", 2, "--steps must be at most"),
    ("figure graph --cuts two", 2, "--cuts takes step numbers"),
    ("figure graph --cuts 1,4", 2, "--cuts must lie between 1 and 3"),
]


def one_line(answer) -> str:
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert len(lines) == 1 and answer.err.endswith("\n"), answer.err
    assert "Traceback" not in lines[0] and "unexpected" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(("typed", "code", "says"), WRONG, ids=[typed for typed, _, _ in WRONG])
def test_one_clear_line_and_nothing_left_behind(cli, tmp_path, typed, code, says):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 200)
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    answer = cli(*typed.split())
    line = one_line(answer)
    assert answer.code == code, line
    assert line.startswith("chronograd") and says in line
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_line_begins_with_the_command(cli):
    assert one_line(cli("figure", "graph", "--steps", "0")).startswith("chronograd figure graph: ")
    assert one_line(cli("train", "nothing.txt", "--run", "r")).startswith("chronograd train: ")
    assert one_line(cli("nonsense")).startswith("chronograd: ")


def test_no_network(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CHRONOGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "_TIMEMACHINE_URL", "http://127.0.0.1:9/timemachine.txt")
    answer = cli("figure", "strategies", "--corpus", "timemachine")
    assert answer.code == 1
    assert "is there a network? 'builtin' needs none" in one_line(answer)
    assert not (tmp_path / "strategies.svg").exists()


class Corrupt(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"wrong")

    def log_message(self, *_):
        pass


def test_a_corrupt_download(cli, tmp_path, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Corrupt)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("CHRONOGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "_TIMEMACHINE_URL", f"http://127.0.0.1:{server.server_address[1]}/timemachine.txt")
    answer = cli("train", "timemachine", "--run", "r")
    server.shutdown()
    server.server_close()
    thread.join()
    assert answer.code == 1
    assert "is corrupt" in one_line(answer)
    assert not (tmp_path / "r").exists() and not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), 1, "out of memory"),
        (PermissionError(13, "Permission denied", "text.txt"), 1, "text.txt: Permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_what_the_system_refuses(cli, monkeypatch, error, code, says):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(corpora, "load_corpus", refuse)
    answer = cli("figure", "strategies", "--corpus", "text.txt")
    assert answer.code == code
    assert says in one_line(answer)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("from a library"), TypeError("a\nb")])
def test_a_fault_of_ours_says_how_to_see_where(cli, monkeypatch, error):
    def fail(*_, **__):
        raise error  # from this file, so not a refusal of chronograd's

    monkeypatch.setattr(corpora, "load_corpus", fail)
    code, out, err = cli("figure", "strategies", "--corpus", "text.txt")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert f"unexpected {type(error).__name__}" in err and "CHRONOGRAD_TRACEBACK=1" in err
    monkeypatch.setenv("CHRONOGRAD_TRACEBACK", "1")
    code, _, err = cli("figure", "strategies", "--corpus", "text.txt")
    assert code == 1
    assert err.startswith("Traceback") and "in fail" in err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_line_too(cli, monkeypatch):
    def read(*_, **__):
        warnings.warn("the text is odd", stacklevel=2)
        return corpora.Corpus("odd", "abcdef", None, "")

    monkeypatch.setattr(corpora, "load_corpus", read)
    code, _, err = cli("figure", "strategies", "--corpus", "text.txt", "--steps", "3")
    assert (code, err) == (0, "chronograd figure strategies: warning: the text is odd\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout(shell):
    with open("/dev/full", "w") as full:
        process = shell("figure", "graph", stdout=full)
    _, err = process.communicate()
    assert (process.returncode, err) == (1, "chronograd figure graph: No space left on device\n")


def test_letters_that_stdout_cannot_show_are_escaped(shell):
    process = shell("figure", "graph", "--out", "h\u00fc.svg", environment={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("h\\xfc.svg: 3 steps")
