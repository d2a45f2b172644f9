"""Open the sides of a gate by what the user wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.cli.targets import cluster_of, open_run, recipe_path
from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.gate.opening import Kind
    from backtrack.gate.sides import Side
    from backtrack.recipe import Recipe
    from backtrack.selection.measure.evaluator import Evaluator


class Opening:
    """Opens both sides: runs are opened once, and say what else is measured.

    Attributes:
        seed: Seed of the items' order: the recipe's.
    """

    def __init__(
        self,
        base: str | None,
        recipe: Path | None,
        overrides: Sequence[str] | None,
        targets: Sequence[str],
        *,
        cluster: tuple[int | None, str | None],
        may_run_code: bool,
    ) -> None:
        """Take what the user gave; `cluster` has the number of workers and Ray's address."""
        self._base = base
        self._recipe_file = recipe
        self._overrides = overrides
        self._targets = targets
        self._cluster = cluster
        self._may_run_code = may_run_code
        self._evaluators: dict[Path, Evaluator] = {}
        self._is_one_run = False
        self._recipe: Recipe | None = None
        self.seed = 0

    def sides(self, candidate: str, incumbent: str) -> tuple[Side, Side]:
        """Open both, runs first."""
        from backtrack.gate.opening import kind_of, split_name
        from backtrack.recipe import load_recipe

        names = [split_name(text) for text in (candidate, incumbent)]
        kinds = [kind_of(name) for name, _ in names]
        if self._recipe_file is not None:
            path = recipe_path(self._recipe_file)
            self._recipe = load_recipe(path, self._overrides or ())
        runs = {name for (name, _), kind in zip(names, kinds, strict=True) if kind == "run"}
        self._is_one_run = len(runs) == 1
        if any(self._cluster) and not self._is_one_run:
            raise UsageError(
                "--workers and --ray measure points of one run; a gate of two runs, or of none, "
                "is measured by this process."
            )
        opened: dict[int, Side] = {}
        for index in sorted((0, 1), key=lambda i: kinds[i] != "run"):
            opened[index] = self._open(kinds[index], *names[index])
        self.seed = self._recipe.search.seed if self._recipe else 0
        return opened[0], opened[1]

    def close(self) -> None:
        """End what measures in other processes."""
        for evaluator in self._evaluators.values():
            evaluator.close()

    def _open(self, kind: Kind, name: str, point: str) -> Side:
        match kind:
            case "run":
                return self._open_run(name, point)
            case "model":
                return self._open_model(name)
            case "measurements":
                return _open_measurements(name, point)
            case "lm_eval":
                return self._open_lm_eval(name)

    def _open_run(self, name: str, point: str) -> Side:
        from backtrack.gate.live import PointSide
        from backtrack.gate.opening import point_of
        from backtrack.recipe import ClusterSection
        from backtrack.selection.measure.evaluator import Evaluator

        run = open_run(name, self._base, self._recipe_file, self._overrides,
                       may_run_code=self._may_run_code)  # fmt: skip
        run.choose_for_now()
        path = run.path.resolve()
        if path not in self._evaluators:
            cluster = cluster_of(run, *self._cluster) if self._is_one_run else ClusterSection()
            self._evaluators[path] = Evaluator(run, None, None, None, cluster)
        evaluator = self._evaluators[path]
        self._recipe = self._recipe or evaluator.recipe
        return PointSide(evaluator, point_of(evaluator.run, point))

    def _open_model(self, name: str) -> Side:
        from backtrack.gate.live import ModelSide

        if self._recipe is None:
            raise UsageError(
                f"nothing says what to measure of {name}. Give a recipe with --recipe FILE that "
                "has `objectives:`."
            )
        return ModelSide(name, self._recipe)

    def _open_lm_eval(self, name: str) -> Side:
        from backtrack.gate.lm_eval_results import LmEvalSide

        sections = self._recipe.objectives if self._recipe else ()
        return LmEvalSide(Path(name), sections=sections, targets=self._targets)


def _open_measurements(name: str, point: str) -> Side:
    from backtrack.gate.recorded import read_measurements
    from backtrack.point import Point, parse_point

    named = Point.base() if point == "base" else parse_point(point) if point else None
    return read_measurements(Path(name), named)
