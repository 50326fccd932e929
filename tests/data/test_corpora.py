"""Corpora: what is read is what lies there; what goes wrong says so in one line and leaves nothing behind."""

import gc
import hashlib
import http.server
import io
import re
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from chronograd.data import corpora
from chronograd.data.builtin import builtin_text
from chronograd.data.corpora import letters, load_corpus, map_corpus


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def letters_by_hand(text: str) -> str:
    """The same preprocessing, one character after another."""
    kept: list[str] = []
    for character in text:
        if "a" <= character <= "z" or "A" <= character <= "Z":
            kept.append(character.lower())
        elif not kept or kept[-1] != " ":
            kept.append(" ")
    return "".join(kept)


def test_timemachine_is_the_published_file(timemachine_path):
    corpus = load_corpus(timemachine_path)
    assert corpus.fingerprint == "sha1:090b5e7e70c295757f55df93cb0a180b9691891a"
    assert len(corpus) == 178_979
    assert corpus.text.startswith("The Time Machine, by H. G. Wells [1898]")


def test_timemachine_letters_give_the_textbook_numbers(timemachine_path):
    # d2l, "Converting raw text into sequence data": 173,428 tokens, 28 in the vocabulary with its <unk>
    text = load_corpus(timemachine_path, preprocess="letters").text
    assert len(text) == 173_428
    assert len(set(text)) + 1 == 28
    assert text.startswith("the time machine by h g wells i the time traveller for so it will be")


@pytest.mark.parametrize("text", ["The Time Traveller (for so", "", "  a--B\n\nc9d ", "ÀÉ Straße…", "\u0130İı K"])
def test_letters_against_a_loop_over_characters(text):
    assert letters(text) == letters_by_hand(text)


def test_builtin_is_english_prose_without_repeats():
    text = builtin_text()
    lines = text.splitlines()
    assert len(text) > 150_000 and text.isascii()
    assert max(Counter(lines).values()) == 1  # a repeat could lie on both sides of a split
    words = re.findall("[a-z]+", text.lower())
    common = sum(word in {"the", "of", "a", "is", "to", "and", "in", "be", "for"} for word in words) / len(words)
    assert common > 0.2  # in English about a quarter of all words; in code next to none
    assert builtin_text() == text


def test_builtin_letters_have_27_characters():
    assert set(load_corpus("builtin", preprocess="letters").text) == set("abcdefghijklmnopqrstuvwxyz ")


def test_a_file_is_kept_as_it_is(tmp_path):
    content = "Zeile eins\r\nзвено два\n三\n"
    (tmp_path / "text").write_bytes(content.encode())
    corpus = load_corpus(tmp_path / "text")
    assert corpus.text == content
    assert corpus.fingerprint == "sha1:" + sha1(content.encode())
    assert corpus.name == str(tmp_path / "text")


def test_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfabc")
    assert load_corpus(tmp_path / "text").text == "abc"


def test_streams_of_text_and_of_bytes():
    assert load_corpus(io.StringIO("Grüße")).text == "Grüße"
    assert load_corpus(io.BytesIO("Grüße".encode())).text == "Grüße"


def test_equal_content_has_equal_fingerprint_whatever_the_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("the same")
    (tmp_path / "c").write_text("another")
    one, two, three = (load_corpus(tmp_path / name).fingerprint for name in "abc")
    assert one == two != three


def test_map_holds_the_bytes_of_the_file(tmp_path):
    content = bytes(range(256)) * 3
    (tmp_path / "raw").write_bytes(content)
    corpus = map_corpus(tmp_path / "raw")
    assert isinstance(corpus.raw, np.memmap) and not corpus.raw.flags.writeable
    assert corpus.raw.tobytes() == content and len(corpus) == 768
    assert corpus.text is None


def test_map_fingerprint_sees_the_ends_and_the_size(tmp_path):
    size = 3 << 20
    base = bytearray(size)
    prints = set()
    for change in (None, 0, size - 1, "longer"):
        content = bytearray(base)
        if change == "longer":
            content += b"\0"
        elif change is not None:
            content[change] = 1
        (tmp_path / "raw").write_bytes(content)
        prints.add(map_corpus(tmp_path / "raw").fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize("load", [load_corpus, map_corpus])
def test_missing_folder_and_empty(tmp_path, load):
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path / "nowhere.txt")
    assert "nowhere.txt" in one_line(error)
    with pytest.raises(IsADirectoryError) as error:
        load(tmp_path)
    assert str(tmp_path) in one_line(error)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError) as error:
        load(tmp_path / "empty.txt")
    assert "empty.txt" in one_line(error)


def test_missing_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="timemachin: no such file.*builtin, timemachine"):
        load_corpus("timemachin")


def test_no_letters_left(tmp_path):
    (tmp_path / "digits").write_text("3.14159")
    with pytest.raises(ValueError, match="no letters"):
        load_corpus(tmp_path / "digits", preprocess="letters")


def test_not_utf8_names_the_byte(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"latin: not UTF-8 at byte 3 \(0xe9\)") as error:
        load_corpus(tmp_path / "latin")
    one_line(error)


def test_unknown_preprocessing():
    with pytest.raises(ValueError, match="'words'.*'letters'"):
        load_corpus("builtin", preprocess="words")


def test_only_regular_files_are_mapped():
    with pytest.raises(OSError, match="regular file"):
        map_corpus("/dev/null")


# The download, against a server of our own.

GOOD = b"It was at ten o'clock to-day that the first of all Time Machines began its career."


class Server(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        body = {"/good": GOOD, "/corrupt": GOOD.upper()}.get(self.path)
        if self.path == "/short":  # promises more than it sends, then hangs up
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(GOOD)
            return
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    pytest.importorskip("pooch")
    monkeypatch.setenv("CHRONOGRAD_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Server.asked = 0
    listening = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.server_close()
    thread.join()


def cached(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_download_is_cached(server, tmp_path):
    for _ in range(2):
        assert corpora._fetch("book", server + "/good", sha1(GOOD)).read_bytes() == GOOD
    assert Server.asked == 1
    assert cached(tmp_path) == ["book.txt"]


def test_a_damaged_cache_is_fetched_again(server, tmp_path):
    path = corpora._fetch("book", server + "/good", sha1(GOOD))
    path.write_bytes(GOOD[:10])
    assert corpora._fetch("book", server + "/good", sha1(GOOD)).read_bytes() == GOOD
    assert Server.asked == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # requests leaves its socket open
@pytest.mark.parametrize("page", ["/corrupt", "/short", "/nothing"])
def test_a_bad_download_leaves_nothing(server, tmp_path, page):
    with pytest.raises((ValueError, ConnectionError), match="book: .*(corrupt|cannot fetch)") as error:
        corpora._fetch("book", server + page, sha1(GOOD))
    assert page in one_line(error)
    assert cached(tmp_path) == []
    del error
    gc.collect()


def test_no_network(server, tmp_path):
    with pytest.raises(ConnectionError, match="is there a network"):
        corpora._fetch("book", "http://127.0.0.1:1/book", sha1(GOOD))
    assert cached(tmp_path) == []


def test_the_named_corpus_goes_through_the_cache(server, tmp_path, monkeypatch, timemachine_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "timemachine.txt").write_bytes(timemachine_path.read_bytes())
    assert load_corpus("timemachine").fingerprint == "sha1:" + corpora._TIMEMACHINE_SHA1
    assert Server.asked == 0


def test_without_pooch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'chronograd\[data\]'"):
        load_corpus("timemachine")
