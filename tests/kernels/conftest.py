"""What the kernels' tests share: the library and the number of threads."""

from __future__ import annotations

import pytest
import torch

from chronograd.kernels import library


@pytest.fixture(scope="session")
def native():
    found = library.library()
    if found is None:
        pytest.skip("the kernels are not built: everything would be the twin against itself")
    return found


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
