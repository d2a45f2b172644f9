"""A recipe: one YAML file that says what to train, what to measure and how to choose.

`load_recipe` lists every fault of a file at once, each with the nearest key where a name is
unknown. Keys under `sft` and `method` belong to TRL and PEFT; they are checked where those
libraries are at hand (`backtrack.train.check`), and passed in as `checks`.
"""

from backtrack.recipe.faults import (
    nearest,
)
from backtrack.recipe.loading import (
    find_recipe,
    load_recipe,
    packaged_recipes,
)
from backtrack.recipe.model import (
    Recipe,
)
from backtrack.recipe.objectives import (
    ExamplesObjective,
    LmEvalObjective,
    Objective,
    PythonObjective,
    TextObjective,
)
from backtrack.recipe.search import (
    BaselineKind,
    BudgetSection,
    ItemsSection,
    ProfileKind,
    RacingSection,
    SearchSection,
    SelectSection,
)
from backtrack.recipe.sections import (
    BaseSection,
    DataSection,
    FullMethod,
    Method,
    PeftMethod,
    PlacementSection,
    Section,
    TrajectorySection,
)

__all__ = [
    "BaseSection",
    "BaselineKind",
    "BudgetSection",
    "DataSection",
    "ExamplesObjective",
    "FullMethod",
    "ItemsSection",
    "LmEvalObjective",
    "Method",
    "Objective",
    "PeftMethod",
    "PlacementSection",
    "ProfileKind",
    "PythonObjective",
    "RacingSection",
    "Recipe",
    "SearchSection",
    "Section",
    "SelectSection",
    "TextObjective",
    "TrajectorySection",
    "find_recipe",
    "load_recipe",
    "nearest",
    "packaged_recipes",
]
