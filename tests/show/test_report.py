"""The report: whole, self-contained, escaped, with the numbers of the comparison."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
import torch

import chronograd as cg
from chronograd.measure.comparison import Candidate, Comparison
from chronograd.show.report import Report, cuts_of, render_report
from chronograd.truncation import Place

HOSTILE = "<script>alert('x')</script> & \"quotes\" --> </pre>\x07"
VOID = {"meta", "link", "br", "img", "hr", "input"}


def candidate(name, bias, variance, unbiased=False):
    return Candidate(name, "reverse", unbiased, 9.5, 0.0123, 4_500_000, 8, bias, 0.01, variance, 0.002, 0.987, 0.001)


@pytest.fixture(scope="module")
def report():
    rows = (
        candidate("full", 0.0, 0.0, True),
        candidate("chunks:5", 0.4321, 0.0),
        candidate("random:7", 0.02, 0.0345, True),
        candidate("window:2,9", 0.0077, 0.0),
    )
    comparison = Comparison(rows, 1.0, 1.0, 0.2, 60, 4, 8, 0.1)
    metrics = [{"step": n, "bits": 5 / n} for n in range(1, 9)] + [{"step": 8, "validation_bits": 1.0}]
    return Report(HOSTILE, [("text", HOSTILE)], metrics, "character", comparison, HOSTILE, HOSTILE, 3, "The ", HOSTILE)


@pytest.fixture(scope="module")
def page(report):
    return render_report(report)


class Balance(HTMLParser):
    """Notes tags that do not close in order, ids given twice, and whatever would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.faults, self.ids, self.fetched, self.tags = [], [], set(), [], set()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.faults += [f"id {value} twice"] * (value in self.ids)
                self.ids.add(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and not str(value).startswith("#"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")


def test_it_is_well_formed_and_fetches_nothing(page):
    reader = Balance()
    reader.feed(page)
    reader.close()
    assert page.startswith("<!doctype html>")
    assert reader.faults == [] and reader.open == [] and reader.fetched == []
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert page.count("<svg") == 4
    for target in re.findall(r'(?:href="|url\()#([^")]+)', page):
        assert target in reader.ids


def test_hostile_text_is_escaped(page):
    reader = Balance()
    reader.feed(page)
    assert "script" not in reader.tags and "<script" not in page
    assert "&lt;script&gt;alert(" in page and "\x07" not in page.split("<pre>")[1]


def test_the_numbers_and_the_recommended_row(report, page):
    for cells in report.comparison.cells():
        for cell in cells:
            assert f"<td>{cell}</td>" in page
    best = re.findall(r'<tr class="best"><td>([^<]*)</td>', page)
    assert best == [report.comparison.recommended.label]
    assert report.comparison.recommendation in unescape(page)
    assert "window:2,9: a sliding window has no cuts" in " ".join(page.split())


def test_the_cuts_shown_are_those_of_the_first_draw():
    row = torch.zeros(1, dtype=torch.int64)
    gates = cg.RandomTruncation(7).plan(Place(0, 60, row, 3, row)).gates[:, 0]
    cuts = cuts_of(["random:7", "adaptive:0.1"], 60, seed=3)
    assert cuts == {"random:7": (0, *(t for t in range(1, 60) if gates[t] == 0))}
    assert len(cuts["random:7"]) > 2


def test_without_jinja2_it_says_what_to_install(report, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match="chronograd\\[report\\]"):
        render_report(report)


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_a_browser_shows_it_without_scrolling_sideways(page, tmp_path):
    probe = "<script>document.title = document.documentElement.scrollWidth - window.innerWidth</script></body>"
    (tmp_path / "report.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = ["chromium", *options, "--window-size=500,900", "--dump-dom", f"file://{tmp_path / 'report.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=25).stdout
    assert float(re.search(r"<title>(-?\d+)</title>", shown)[1]) <= 0
    assert shown.count("<svg") == 4
