"""What the kernels' tests share: the library and the number of threads."""

from __future__ import annotations

import shutil

import pytest
import torch

from chronograd.kernels import library
from chronograd.kernels.native.build import build


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    found = library.library()
    if found is not None:
        return found
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    out = tmp_path_factory.mktemp("native") / "libchronograd.so"
    build(out)
    return library.load(out)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
