"""The Python of README.md and of the pages of docs/ runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# The pages about one's own model have a test of their own.
PAGES = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")))
BLOCKS = [
    pytest.param(block, id=f"{page}:{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_and_what_it_finds_is_inside_its_ball(block, capsys):
    if "import torch" in block:
        pytest.importorskip("torch")
    names = {}
    exec(compile(block, "block", "exec"), names)
    # What a page prints of an attack is a radius and a distance, which the ball bounds.
    printed = re.findall(r"radius ([\d.]+), exact distance ([\d.]+)", capsys.readouterr().out)
    radius, distance = np.array(printed, float).reshape(-1, 2).T
    assert (distance <= radius * (1 + 1e-4)).all()
    if "wa.metrics.exact_distances" in block:
        assert len(printed) == len(names["images"])
        assert names["result"].success.all()
