"""PyTorch is optional: without it there is one line that says so."""

import sys

import pytest

from wasserstein_adv.errors import InputError
from wasserstein_adv.models import from_torch


def test_without_pytorch_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="PyTorch is not installed; `pip install torch`") as caught:
        from_torch(object(), (28, 28, 1))
    assert "\n" not in str(caught.value)
