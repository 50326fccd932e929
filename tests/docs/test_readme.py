"""What README.md and docs/*.md say, tried: Python blocks run, commands exist, the support table is the code's."""

import re
import shlex
import warnings
from pathlib import Path

import pytest

from chronograd import support

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in these languages, each with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start()].count("\n") + 2, m[2]) for m in BLOCK.finditer(text) if m[1] in languages]


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks that are typed."""
    lines = "\n".join(code for _, code in blocks(page, "console", "bash", "sh")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?(make|chronograd|python|git|cd) ?", line)]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands(page)})


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_blocks_run(page, monkeypatch, tmp_path):
    """All blocks of one page, one after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value)
def test_commands_exist(page, command, capsys):
    words = shlex.split(command.split("#")[0])
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "chronograd":
        _check_command_line(words[1:])


def _check_command_line(words: list[str]) -> None:
    """Parse a command line without running it."""
    from chronograd.cli.app import app

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "--help" in words or "--version" in words:
            app.parse_args(words, exit_on_error=False, print_error=False)
            return
        command, bound, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert callable(command), words
    assert bound.arguments is not None


@pytest.mark.parametrize(
    ("heading", "asked"),
    [
        ("value_and_grad", ("value_and_grad",)),
        ("value_and_grad scan", ("value_and_grad", "scan")),
        ("value_and_grad forward", ("value_and_grad", "forward")),
        ("value_and_grad evolution", ("value_and_grad", "evolution")),
        ("unroll", ("unroll",)),
    ],
)
def test_support_table(heading, asked):
    """The table on the page is the one that the door asks."""
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- support: {heading} -->\n\n(.*?)\n\n<!-- end -->", text, re.DOTALL)
    assert found and found[1] == support.table(*asked)


def test_local_links_exist():
    """Links and pictures that point into the project point at files."""
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} points at {target}"


def test_readme_quotes_the_benchmarks():
    """Every row of figures in the README's benchmark tables stands in docs/benchmarks.md."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"<!-- from docs/benchmarks.md -->\n\n(.*?)\n\n<!-- end -->", readme, re.DOTALL)
    assert len(quoted) == 3
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"\n\n{table}\n\n" in measured for table in quoted)
