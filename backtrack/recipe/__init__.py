"""A recipe: one YAML file that says what to train, what to measure and how to choose.

`load_recipe` lists all mistakes of a file at once, with the nearest known key for an unknown one.
Keys under `sft` and `method` belong to TRL and PEFT; `backtrack.train.trainers.check` checks them
and is passed in as one of `checks`, so that this package imports neither library.
"""

from backtrack.recipe.choosing import ChoosingRecipe
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
    read_text,
)
from backtrack.recipe.model import (
    PARADIGMS,
    Paradigm,
    Recipe,
)
from backtrack.recipe.objectives import (
    DivergenceObjective,
    ExamplesObjective,
    LmEvalObjective,
    Objective,
    ObjectiveSection,
    PreferenceObjective,
    PythonObjective,
    RefusalObjective,
    TextObjective,
)
from backtrack.recipe.search import (
    BaselineKind,
    BudgetSection,
    ClusterSection,
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
    "PARADIGMS",
    "BaseSection",
    "BaselineKind",
    "BudgetSection",
    "ChoiceReward",
    "ChoosingRecipe",
    "ClusterSection",
    "DataSection",
    "DivergenceObjective",
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
    "Paradigm",
    "PeftMethod",
    "PlacementSection",
    "PreferenceObjective",
    "ProfileKind",
    "PythonObjective",
    "PythonReward",
    "RacingSection",
    "Recipe",
    "RefusalObjective",
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
    "read_text",
]
