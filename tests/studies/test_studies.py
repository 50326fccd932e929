"""The studies run to their end at a reduced size, and write their page and figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(path for path in (ROOT / "studies").glob("*.py") if path.stem != "page")


def test_there_are_studies_and_their_pages_are_of_full_runs():
    assert STUDIES
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "studies").glob("*.md")}
    index = pages.pop("index")
    assert pages.keys() == {script.stem for script in STUDIES}
    assert all(f"\n{name}\n" in index for name in pages)
    assert not any("--quick" in text for text in pages.values())


@pytest.mark.parametrize("script", STUDIES, ids=lambda path: path.stem)
def test_study(script, tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script), "--quick", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    page = (tmp_path / f"{script.stem}.md").read_text(encoding="utf-8")
    assert "| " in page and "not to quote" in page
    assert sorted(tmp_path.glob("*.png"))
