"""A recipe: one YAML file that says what to train, what to measure and how to choose.

`load_recipe` lists every fault of a file at once, each with the nearest key where a name is
unknown. Keys under `sft` and `method` belong to TRL and PEFT; they are checked where those
libraries are at hand (`backtrack.train.trainers.check`), and passed in as `checks`.
"""

from backtrack.recipe.engine import (
    Engine,
    EngineSection,
    SamplingSection,
    TransformersSection,
    VllmSection,
)
from backtrack.recipe.faults import (
    nearest,
)
from backtrack.recipe.loading import (
    find_recipe,
    load_recipe,
    packaged_arenas,
    packaged_recipes,
)
from backtrack.recipe.model import (
    Recipe,
)
from backtrack.recipe.objectives import (
    ExamplesObjective,
    LmEvalObjective,
    Objective,
    ObjectiveSection,
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
from backtrack.recipe.training import (
    ChoiceReward,
    EarlyStopSection,
    FormatReward,
    MathVerifyReward,
    NumericReward,
    PythonReward,
    Reward,
    WatchSection,
)

__all__ = [
    "BaseSection",
    "BaselineKind",
    "BudgetSection",
    "ChoiceReward",
    "DataSection",
    "EarlyStopSection",
    "Engine",
    "EngineSection",
    "ExamplesObjective",
    "FormatReward",
    "FullMethod",
    "ItemsSection",
    "LmEvalObjective",
    "MathVerifyReward",
    "Method",
    "NumericReward",
    "Objective",
    "ObjectiveSection",
    "PeftMethod",
    "PlacementSection",
    "ProfileKind",
    "PythonObjective",
    "PythonReward",
    "RacingSection",
    "Recipe",
    "Reward",
    "SamplingSection",
    "SearchSection",
    "Section",
    "SelectSection",
    "TextObjective",
    "TrajectorySection",
    "TransformersSection",
    "VllmSection",
    "WatchSection",
    "find_recipe",
    "load_recipe",
    "nearest",
    "packaged_arenas",
    "packaged_recipes",
]
