"""Random problems over the whole range, each answer checked: what is wrong, and what gave up.

python -m benchmarks.soak --minutes 120 --out soak.json
"""

import functools
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from benchmarks._soak_judges import judge
from benchmarks._soak_problems import SIZES, Problems, draw
from experiments.harness.arguments import check_positive, check_seed, run_command, use_all_cores
from experiments.harness.environment import command_line, run_environment
from experiments.harness.files import write_json_atomic
from experiments.harness.progress import progress_bar
from experiments.harness.tables import Table, on_terminal
from wasserstein_adv import projections
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import LocalGrid, euclidean_power, local_grid

_WRONG = 1  # the exit status
_BATCH = 64
_JUDGED = 2  # problems of a batch of few pixels that an interior point solves again
_FEW = 30  # pixels
_MASS, _COST, _CAP = 1e-5, 1e-5, 1e-6  # what rounding may do, as shares
_APART = 1e-2  # ‖z − z*‖₁ as a share of the mass, from which a converged answer is a false one
_LEVELS = {"λ ≤ 1e2": 1e2, "λ ≤ 1e4": 1e4, "λ ≤ 1e5": 1e5}

PROJECTIONS: dict[str, Callable[[LocalGrid, Problems], Any]] = {
    "sinkhorn": lambda g, p: projections.projected_sinkhorn(g, p.x, p.w, p.radius, p.reg),
    "sinkhorn, capped": lambda g, p: projections.projected_sinkhorn(
        g, p.x, p.w, p.radius, p.reg, cap=p.cap
    ),
    "flow": lambda g, p: projections.flow_projection(p.x, p.w, p.radius, cap=p.cap),
    "dual": lambda g, p: projections.dual_projection(g, p.x, p.plan, p.radius),
    "dual, capped": lambda g, p: projections.dual_projection(g, p.x, p.plan, p.radius, cap=p.cap),
    "unbalanced": lambda g, p: projections.unbalanced_sinkhorn(g, p.x, p.w, p.eta, p.tau, p.gamma),
}


@dataclass(frozen=True)
class SoakConfig:
    """Project random problems and special images for a while, and check every answer.

    Radii from 1e-3 to 4, λ from 1 to 1e5, steps from 1e-3 to 5 on images that may be blank, white,
    faint or of one pixel, windows 3 to 9. Wrong is what is not finite, has another mass, a negative
    pixel, one above the cap, a cost above the radius, or is said to have converged and has not:
    that an interior point says, where cvxpy is installed, of some problems of few pixels. The exit
    status is 1 if an answer is wrong.
    """

    minutes: float = 10.0
    """How long."""

    seed: int = 0
    """Of the problems."""

    out: Path | None = None
    """File for the counts and for every problem that was wrong or did not converge, JSON; it must
    not exist."""


def main(config: SoakConfig) -> None:
    """Run, and print the counts.

    Raises:
        InputError: an option is out of range, or `out` exists or cannot be written.
        SystemExit: with status 1, if an answer was wrong.
    """
    check_positive("minutes", config.minutes)
    check_seed(config.seed)
    if config.out is not None and (config.out.exists() or not config.out.parent.is_dir()):
        raise InputError(f"--out {config.out}: is there already, or there is no folder for it")
    use_all_cores()
    found = soak(60.0 * config.minutes, config.seed, SIZES)
    console = Console()
    console.print(on_terminal(table(found)))
    if config.out is not None:
        about = {"command": command_line(), "environment": run_environment()}
        write_json_atomic(config.out, {**found, **about})
    if found["wrong"]:
        for problem in found["wrong"][:10]:
            console.print(f"wrong: {problem}", highlight=False)
        raise SystemExit(_WRONG)


def soak(seconds: float, seed: int, sizes: tuple[tuple[int, int, int, int], ...]) -> Any:
    """Draw, project and check until the time is over, one batch of each projection at least.

    Returns:
        "counts" by projection and kind; the problems that were "wrong", and those "unfinished".
    """
    rng, begun, at = np.random.default_rng(seed), time.perf_counter(), 0
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: list[dict[str, Any]] = []
    unfinished: list[dict[str, Any]] = []
    with progress_bar() as bar:
        task = bar.add_task("soak", total=seconds, measured="")
        while at == 0 or time.perf_counter() - begun < seconds:
            size = sizes[at % len(sizes)]
            problems = draw(rng, size, _BATCH)
            for name in PROJECTIONS:
                answers = jax.tree.map(np.asarray, _program(name, size)(problems._replace(kind=())))
                for kind, k in _faults(name, size, problems, answers):
                    wrong.append({"fault": kind, **_described(name, size, problems, answers, k)})
                    counts[name][kind] += 1
                for level, most in _LEVELS.items():
                    chosen = problems.reg <= most if "sinkhorn" in name else np.ones(_BATCH, bool)
                    counts[name][f"problems, {level}"] += int(chosen.sum())
                    counts[name][f"converged, {level}"] += int(answers.converged[chosen].sum())
                for k in np.flatnonzero(~answers.converged):
                    unfinished.append(_described(name, size, problems, answers, k))
                _judge(name, size, problems, answers, counts[name], wrong)
            at += 1
            done = min(time.perf_counter() - begun, seconds)
            bar.update(
                task, completed=done, measured=f"{at * _BATCH:,} problems, {len(wrong)} wrong"
            )
    return {"counts": counts, "wrong": wrong, "unfinished": unfinished}


@functools.cache
def _program(name: str, size: tuple[int, int, int, int]) -> Callable[[Problems], Any]:
    geometry = local_grid(size[:2], euclidean_power(1.0), size[3])
    return jax.jit(jax.vmap(functools.partial(PROJECTIONS[name], geometry)))


def _faults(name: str, size: Any, problems: Problems, answers: Any) -> list[tuple[str, int]]:
    """What is wrong with a batch's answers, and with which."""
    z, x = (a.astype(np.float64) for a in (answers.point, problems.x))
    pixels = (1, 2, 3)
    mass = x.sum((1, 2))
    faults = {"not finite": ~np.isfinite(z).all(pixels), "negative": (z < 0).any(pixels)}
    if name != "unbalanced":
        off = np.abs(z.sum((1, 2)) - mass) > _MASS * mass
        faults["mass"] = off.any(1)
        faults["cost"] = answers.cost > problems.radius * (1.0 + _COST)
    if "capped" in name or name == "flow":
        faults["above the cap"] = z.max(pixels) > problems.cap * (1.0 + _CAP)
    return [(kind, int(k)) for kind, bad in faults.items() for k in np.flatnonzero(bad)]


def _judge(
    name: str,
    size: tuple[int, int, int, int],
    problems: Problems,
    answers: Any,
    counts: Counter[str],
    wrong: list[dict[str, Any]],
) -> None:
    """Have an interior point solve some of a small batch's converged problems again."""
    mass = problems.x.astype(np.float64).sum((1, 2, 3))
    worth = np.flatnonzero(answers.converged & (mass > 1e-3) & (mass < 1e3))
    if size[0] * size[1] > _FEW or not _can_judge():
        return
    for k in worth[:_JUDGED]:
        truth = judge(name, problems, int(k), size[3])
        if truth is None:
            continue
        counts["judged"] += 1
        share = np.abs(answers.point[k] - truth).sum() / mass[k]
        if share > _APART:
            counts["falsely converged"] += 1
            described = _described(name, size, problems, answers, int(k))
            wrong.append({"fault": "falsely converged", "apart": share, **described})


@functools.cache
def _can_judge() -> bool:
    try:
        import cvxpy  # noqa: F401
    except ImportError:
        return False
    return True


def _described(name: str, size: Any, problems: Problems, answers: Any, k: int) -> dict[str, Any]:
    """A problem in words and numbers."""
    return {
        "projection": name,
        "size": size,
        "image": problems.kind[k],
        "mass": problems.x[k].sum(),
        "step": np.abs(problems.w[k] - problems.x[k]).max(),
        **{field: getattr(problems, field)[k] for field in Problems._fields[4:]},
        "residual": answers.residual[k],
        "iterations": answers.iterations[k],
    }


def table(found: Any) -> Table:
    """A row for each projection: how many, what converged, what was wrong."""
    columns = ("projection", "problems", *_LEVELS)
    rows = []
    for name, counts in found["counts"].items():
        total = counts[f"problems, {list(_LEVELS)[-1]}"]
        shares = [
            f"{100 * counts[f'converged, {level}'] / max(counts[f'problems, {level}'], 1):.2f} %"
            for level in _LEVELS
        ]
        bad = sum(1 for problem in found["wrong"] if problem["projection"] == name)
        rows.append((name, f"{total:,}", *shares, f"{counts['judged']:,}", f"{bad:,}"))
    return Table("converged, by the largest λ", (*columns, "judged", "wrong"), rows)


if __name__ == "__main__":
    sys.exit(run_command(main, SoakConfig))
