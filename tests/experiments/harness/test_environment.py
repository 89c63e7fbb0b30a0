"""What a run's numbers may depend on."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import wasserstein_adv
from experiments.harness import environment
from experiments.harness.environment import run_environment


def test_environment_is_json_and_names_what_ran():
    found = run_environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["device"]["count"] >= 1
    assert found["numpy"] == np.__version__
    assert found["wasserstein_adv"] == wasserstein_adv.__version__
    assert {"jax", "jaxlib", "ott-jax", "optax", "flax", "POT", "git_commit"} <= found.keys()


def test_git_is_optional(tmp_path, monkeypatch):
    unknown = {"git_commit": None, "git_dirty": None}
    assert environment._git_state(tmp_path) == unknown
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._git_state(Path(environment.__file__).parents[2]) == unknown


def test_git_state_is_that_of_this_checkout_only(tmp_path, monkeypatch):
    if environment._git(tmp_path, "--version") is None:
        pytest.skip("needs git")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").touch()
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m", "--no-verify"]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    clean = environment._git_state(tmp_path)
    assert len(clean["git_commit"]) == 40
    assert clean["git_dirty"] is False
    assert environment._git_state(tmp_path / "inside")["git_commit"] is None
    (tmp_path / "inside" / "file").write_text("changed")
    assert environment._git_state(tmp_path) == {**clean, "git_dirty": True}
