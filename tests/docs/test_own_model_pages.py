"""The pages on attacking one's own model, run as they stand: what they show is what they print."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "own-model"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_prints_what_it_shows(page):
    if page.stem == "pytorch" and importlib.util.find_spec("torch") is None:
        pytest.skip("needs PyTorch: pip install torch")
    text, printed, names, shown = page.read_text("utf-8"), "", {"__name__": page.stem}, 0
    for kind, block in BLOCK.findall(text):
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, str(page), "exec"), names)
            printed += out.getvalue()
        else:
            shown += 1
            # The words to the letter; figures up to one of 10 images, or a fifth.
            assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", block).split()
            for found, written in zip(NUMBER.findall(printed), NUMBER.findall(block), strict=True):
                near = {"rel": 0.2} if "." in written else {"abs": 15}
                assert float(found) == pytest.approx(float(written), **near)
            printed = ""
    assert shown >= 2
    assert not printed
