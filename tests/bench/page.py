"""Size of the page and time to draw 10,000 points, and latency of the slider at 1,000.

python tests/bench/page.py [POINTS OF THE PAGE] [POINTS OF THE SLIDER]

A page of more than 1,000 points (`sweep.MAX_POINTS`) has no slider, since the table of answers
grows with the square of their number. The slider is timed from the event to the frame after it,
at every second weight, in headless Chromium; a frame is 16.7 ms.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from backtrack.point import Point
from backtrack.records import Axis
from backtrack.records.selection import Candidate, Constraints, Selection
from backtrack.records.sweep import Sweep
from backtrack.report.selection.page import write_report
from backtrack.selection.choice.candidates import choose_point
from backtrack.selection.choice.sweep import answer_weights, make_sweep
from backtrack.selection.stats.front import pareto_front
from backtrack.selection.stats.scores import RoleScores
from backtrack.selection.stats.table import ScoreTable, SplitSetting
from tests.report.browser import Browser
from tests.selection.fakes import make_info

NUM_ITEMS = 200
INFOS = (make_info("math", "target"), make_info("law", "general"), make_info("prose", "general"))
AXIS = Axis(unit="%", direction="maximize")
LATENCY = """
const done = arguments[arguments.length - 1];
const slider = document.querySelector("#weight");
const times = [];
(async () => {
  for (let value = 0; value <= 100; value += 2) {
    const begin = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    const worked = performance.now() - begin;
    await new Promise(requestAnimationFrame);
    await new Promise((next) => setTimeout(next));
    times.push([worked, performance.now() - begin]);
  }
  done(times);
})();
"""


def make_points(count: int) -> list[Point]:
    """The base, and a square grid of steps and strengths."""
    side = int(np.ceil(np.sqrt(count - 1)))
    pairs = [(step, alpha) for step in range(1, side + 1) for alpha in range(1, side + 1)]
    return [Point.base(), *(Point(step=10 * s, alpha=a / side) for s, a in pairs[-(count - 1) :])]


def truth(points: list[Point]) -> np.ndarray[Any, Any]:
    """Shares of correct answers, [objectives, points]."""
    last = max(point.step for point in points)
    far = np.array([point.alpha * point.step / last for point in points])
    return np.stack([0.2 + 0.5 * (1 - np.exp(-4 * far)), 0.7 - 0.3 * far**2, 0.8 - 0.2 * far**3])


def make_selection(points: list[Point], seed: int = 0) -> Selection:
    """A selection of any number of points from noisy mean scores, without the rule."""
    noisy = truth(points) + np.random.default_rng(seed).normal(0, 0.01, (3, len(points)))
    target, general = 100 * noisy[0], 50 * (noisy[1] + noisy[2])
    utility = (target + general) / 2
    on_front = pareto_front(target, general)
    candidates = tuple(
        Candidate(
            point=point,
            scores={info.name: float(noisy[k, i]) for k, info in enumerate(INFOS)},
            target=float(target[i]),
            general=float(general[i]),
            utility=float(utility[i]),
            smoothed=float(utility[i]),
            smoothed_target=float(target[i]),
            smoothed_general=float(general[i]),
            distance=point.alpha * point.step,
            origin="sampler",
            is_on_front=bool(on_front[i]),
            is_feasible=True,
            is_tied=bool(utility[i] > utility.max() - 0.5),
            chance_best=0.0,
        )
        for i, point in enumerate(points)
    )
    return Selection(
        run="many",
        weight=0.5,
        constraints=Constraints(),
        chosen=points[int(utility.argmax())],
        base=Point.base(),
        final=points[-1],
        form="attached",
        curve="native",
        objectives=INFOS,
        axes={"target": AXIS, "general": AXIS},
        yardsticks={},
        candidates=candidates,
        report={},
        differences=(),
        optimism=0.0,
        num_items={},
        level=0.95,
        num_resamples=2000,
        seed=seed,
        verdict="Made up.",
        command="",
        created="2000-01-01T00:00:00+00:00",
    )


def make_swept(points: list[Point], seed: int = 0) -> tuple[Selection, Sweep]:
    """The selection by the rule itself, on simulated answers, with its sweep."""
    rng = np.random.default_rng(seed)
    names = [info.name for info in INFOS]
    ids = {name: tuple(f"{name}/{i:04d}" for i in range(NUM_ITEMS)) for name in names}
    scores = {
        name: (rng.random(NUM_ITEMS) < share[:, None]).astype(float)
        for name, share in zip(names, truth(points), strict=True)
    }
    distances = np.array([point.alpha * point.step for point in points])
    setting = SplitSetting("selection", "attached", "native", INFOS, ids)
    table = ScoreTable(setting, tuple(points), ("sampler",) * len(points), distances, scores)
    begin = time.perf_counter()
    role_scores = RoleScores(table, seed)
    outcome = choose_point(role_scores, points[-1], 0.5, Constraints())
    chosen_at = time.perf_counter()
    selection = make_selection(points).model_copy(
        update={"candidates": outcome.candidates, "chosen": outcome.chosen}
    )
    swept = make_sweep(outcome, answer_weights(outcome), selection.created)
    assert swept is not None
    took = time.perf_counter() - chosen_at
    print(
        f"rule {chosen_at - begin:.1f} s, answers at every weight {took:.1f} s, "
        f"{len(swept.model_dump_json()) / 1e6:.2f} MB"
    )
    return selection, swept


def draw(folder: Path, selection: Selection, swept: Sweep | None, browser: Browser) -> Path:
    """Write a page and show it, and print its size and both times."""
    begin = time.perf_counter()
    page = write_report(folder, selection, (), (), swept)
    written = time.perf_counter() - begin
    begin = time.perf_counter()
    browser.open(page)
    shown = time.perf_counter() - begin
    print(
        f"{len(selection.candidates):,} points: page {page.stat().st_size / 1e6:.2f} MB, "
        f"written in {written:.1f} s, drawn in {shown:.2f} s"
    )
    return page


def main(num_drawn: int = 10_000, num_swept: int = 1_000) -> None:
    browser = Browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), make_selection(make_points(num_drawn)), None, browser)
            selection, swept = make_swept(make_points(num_swept))
            draw(Path(folder), selection, swept, browser)
            browser.driver.set_script_timeout(120)
            times = browser.driver.execute_async_script(LATENCY)
            worked, framed = zip(*times, strict=True)
            print(
                f"slider at {num_swept:,} points: {statistics.median(worked):.0f} ms of work, "
                f"{statistics.median(framed):.0f} ms to the next frame (medians); "
                f"slowest {max(framed):.0f} ms"
            )
            assert browser.messages() == []
    finally:
        browser.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
