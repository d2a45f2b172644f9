"""Points a minute by actors whose objectives sleep, and what the driver adds.

    unshare -n sh -c 'ip link set lo up; exec python tests/bench/cluster.py --actors 1 2 4'

Each objective sleeps as long as a GPU would take for its items, so that the actors of one machine
do not wait for each other's cores. Efficiency is how much faster N actors are than one, over N,
from the first measurement to the last; start-up, from the command to the first measurement, is
printed apart. Where the actors' time went is printed too: measuring, not yet started when the
first one was, and waiting for the others at the end of a round.
The driver's own time a point is what one search takes that does not sleep.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig

from backtrack.recipe import ClusterSection, Recipe
from backtrack.run.directory import Run
from backtrack.selection.search.driver import search
from tests.models import make_base, make_peft_run
from tests.selection.watched import FOLDER, SECONDS

ROOT = Path(__file__).resolve().parents[2]
NUM_ITEMS = 40


def make_recipe(base: Path) -> Recipe:
    """Two objectives that sleep; 20 anchors and 12 points of the sampler, in four rungs."""
    objectives = [
        {"kind": "python", "role": role, "function": f"tests.selection.watched:{name}",
         "items": 2 * NUM_ITEMS, "name": name}
        for role, name in (("target", "likely"), ("general", "unlikely"))
    ]  # fmt: skip
    search_section = {
        "sampler": "random", "racing": {"shares": [0.25, 0.5, 0.75]},
        "items": {"selection": NUM_ITEMS, "report": NUM_ITEMS},
    }  # fmt: skip
    values = {"name": "b", "base": str(base), "objectives": objectives, "search": search_section}
    return Recipe.model_validate(values)


def timed(run: Run, recipe: Recipe, actors: int, seconds: float) -> dict[str, float]:
    """Seconds until the first measurement, from there to the last, and what was measured."""
    pids = Path(tempfile.mkdtemp())
    variables = {FOLDER: str(pids), SECONDS: str(seconds / NUM_ITEMS), "PYTHONPATH": str(ROOT)}
    os.environ.update(variables)
    section = ClusterSection(
        actors=actors, runtime_env={"env_vars": variables} if actors > 1 else {}
    )
    moments: list[float] = []
    begin = time.perf_counter()
    found = search(run, recipe=recipe, cluster=section,
                   on_progress=lambda _: moments.append(time.perf_counter()))  # fmt: skip
    starts = [file.stat().st_mtime for file in pids.iterdir()]
    return {
        "start-up": moments[0] - begin,
        "measuring": moments[-1] - moments[0],
        "points": len({m.point for m in found}),
        "asleep": sum(m.seconds for m in found),
        "late": sum(start - min(starts) for start in starts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of all items of an objective")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    asked = parser.parse_args()
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        recipe = make_recipe(base)
        config: Any = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)
        steps = (10, 20, 30, 40, 50)
        idle = timed(make_peft_run(Path(folder) / "idle", base, config, steps), recipe, 1, 0.0)
        own = idle["measuring"] - idle["asleep"]
        print(f"the driver's own time: {own / idle['points']:.3f} s a point")
        for actors in asked.actors:
            run = make_peft_run(Path(folder) / f"by-{actors}", base, config, steps)
            found = timed(run, recipe, actors, asked.seconds)
            first = first or found
            gain = asked.actors[0] * first["measuring"] / found["measuring"]
            print(
                f"{actors} actors: {60 * found['points'] / found['measuring']:.1f} points/minute, "
                f"efficiency {gain / actors:.3f}, start-up {found['start-up']:.1f} s; "
                + of_their_time(found, actors)
            )


def of_their_time(found: dict[str, float], actors: int) -> str:
    """What the actors did from the first measurement to the last."""
    whole = actors * found["measuring"]
    asleep, late = found["asleep"] / whole, found["late"] / whole
    return f"measuring {asleep:.1%}, late {late:.1%}, waiting {1 - asleep - late:.1%}"


if __name__ == "__main__":
    main()
