"""The Time Machine, where the checkout has it beside it."""

from pathlib import Path

import pytest

TIMEMACHINE = Path(__file__).parents[3] / "shared" / "data" / "timemachine.txt"


@pytest.fixture(scope="session")
def timemachine_path() -> Path:
    if not TIMEMACHINE.is_file():
        pytest.skip("needs ../shared/data/timemachine.txt beside the repository")
    return TIMEMACHINE
