"""A team whose threads lose their cores parts: the first thread does what is left."""

from __future__ import annotations

import subprocess

import pytest
import torch

from chronograd.kernels import library
from chronograd.kernels.compiled import Choice
from chronograd.kernels.native.build import build, compiler
from layer_case import Case

DENSE = ("tanh", "relu", "linear", "gru", "lstm")


@pytest.fixture(scope="module")
def impatient(native, tmp_path_factory):
    """The kernels with no patience: every team that splits the units parts at its first meeting."""
    if compiler() is None:
        pytest.skip("no C compiler, and a team cannot be made to wait on purpose")
    made = tmp_path_factory.mktemp("native") / "impatient.so"
    try:
        build(made, ("-O1", "-DPATIENCE=0"))
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr)
    return library.load(made)


@pytest.mark.parametrize("block", [0, 5])
@pytest.mark.parametrize("kind", DENSE)
def test_one_thread_goes_on_alone(native, impatient, kind, block):
    case = Case(kind, (17, 2, 100, 3), edges=("gates", "reset", "valid"))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = case.projected(Choice(split="units", block=block, native=impatient))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(found, case.twin(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
