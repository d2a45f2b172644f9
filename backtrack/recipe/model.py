"""The whole recipe, as a frozen model."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backtrack.recipe.engine import Engine, EngineSection, TransformersSection
from backtrack.recipe.objectives import Objective, ObjectiveSection
from backtrack.recipe.search import ClusterSection, SearchSection, SelectSection
from backtrack.recipe.sections import (
    BARE_KEYS,
    BaseSection,
    DataSection,
    Method,
    PlacementSection,
    Section,
    TrajectorySection,
)
from backtrack.recipe.training import (
    EarlyStopSection,
    LearningRates,
    Reward,
    WatchSection,
    reward_name,
)
from backtrack.records import Role

Paradigm = Literal["sft", "grpo", "dpo", "kto", "orpo"]
"""How a model is trained, by the section that has TRL's settings for it."""
PARADIGMS: tuple[Paradigm, ...] = get_args(Paradigm)


class Recipe(Section):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's directory."""
    base: BaseSection
    """The model before training."""
    seed: int = 0
    """Seed of training."""
    output: str = "runs"
    """Folder to make the run in, relative to the working directory."""
    method: Method | None = None
    """What is trained; not needed for an adopted run."""
    data: DataSection | None = None
    """Training data; not needed for an adopted run."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Fields of TRL's SFTConfig, to train on given completions."""
    grpo: dict[str, Any] | None = None
    """Instead: fields of TRL's GRPOConfig, to train on sampled completions by `rewards`."""
    dpo: dict[str, Any] | None = None
    """Instead: fields of TRL's DPOConfig, to train on pairs of answers of which one was preferred.
    The reference is the base; for adapters it costs no second copy."""
    kto: dict[str, Any] | None = None
    """Instead: fields of TRL's KTOConfig, to train on single answers, each desirable or not, or on
    the answers of pairs. The reference is that of `dpo`."""
    orpo: dict[str, Any] | None = None
    """Instead: fields of TRL's ORPOConfig, to train on pairs with no reference."""
    rewards: tuple[Reward, ...] = ()
    """Rewards of a completion; their weighted sum is its reward."""
    learning_rates: LearningRates = Field(default_factory=dict)
    """Peak learning rates by a regular expression for parameter names, such as
    `layers\\.[0-3]\\.` or `lora_B`; the first match counts, others have `learning_rate`."""
    adapter_dtype: Literal["auto", "base"] = "auto"
    """Dtype an adapter is trained in: PEFT's own rule, fp32 over a base of half precision; or the
    base's."""
    early_stop: EarlyStopSection | None = None
    """When training stops early, by the evaluation on `data.eval`."""
    watch: WatchSection | None = None
    """Probe evaluations of the objectives during training."""
    trajectory: TrajectorySection = TrajectorySection()
    """Which steps are saved."""
    placement: PlacementSection = PlacementSection()
    """How a model is set to a point."""
    engine: Engine = TransformersSection()
    """What answers the objectives. A bare name is short for `{kind: name}`."""
    objectives: tuple[Objective, ...] = ()
    """What is measured."""
    search: SearchSection = SearchSection()
    """How the path is searched."""
    select: SelectSection = SelectSection()
    """How the point is chosen."""
    cluster: ClusterSection = ClusterSection()
    """By how many processes, and where, it is measured."""

    @model_validator(mode="before")
    @classmethod
    def _earlier_keys(cls, values: object) -> object:
        """Read recipes of before workers were actors: their number has moved to `cluster`."""
        search = values.get("search") if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(search, dict):
            return values
        kept = {k: v for k, v in search.items() if k not in ("workers", "patience_seconds")}
        moved = {"cluster": {"actors": search["workers"]}} if "workers" in search else {}
        return {**moved, **values, "search": kept}

    @property
    def paradigm(self) -> Paradigm:
        """How the model is trained: the section that says so."""
        given = (p for p in PARADIGMS if p != "sft" and getattr(self, p) is not None)
        return next(given, "sft")

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """Fields of TRL's configuration for that."""
        settings: dict[str, Any] = getattr(self, self.paradigm)
        return settings

    @property
    def has_reference(self) -> bool:
        """Whether training compares the model with the base, its reference model."""
        if self.grpo is not None:
            return bool(float(self.grpo.get("beta", 0.0)))
        return self.paradigm in ("dpo", "kto")

    @model_validator(mode="before")
    @classmethod
    def _no_reward_model(cls, values: object) -> object:
        if isinstance(values, dict) and "reward" in values:
            raise ValueError(
                "`reward`: reward models are not trained here. TRL's are classifiers, with a head "
                "that the base does not have: at alpha 0 it would be random, and no objective can "
                "be asked of a model that continues no text. Train it by TRL itself; a function "
                "that calls it is a reward of `grpo`, `kind: python`. To train on the same pairs "
                "without a reward model, use `dpo`, `kto` or `orpo`"
            )
        return values

    @field_validator(*BARE_KEYS, mode="before")
    @classmethod
    def _bare(cls, value: object, info: ValidationInfo) -> object:
        return {BARE_KEYS[str(info.field_name)]: value} if isinstance(value, str) else value

    @field_validator("engine")
    @classmethod
    def _full_precision(cls, engine: EngineSection, info: ValidationInfo) -> EngineSection:
        base = info.data.get("base")
        if base is not None and base.quantization and not engine.reads_quantized_base:
            raise ValueError(
                "this engine does not serve a base that bitsandbytes quantizes on loading; leave "
                "out `base.quantization`, or measure with `engine: transformers`"
            )
        return engine

    @field_validator("objectives")
    @classmethod
    def _measurable(
        cls, objectives: tuple[ObjectiveSection, ...], info: ValidationInfo
    ) -> tuple[ObjectiveSection, ...]:
        engine = info.data.get("engine")
        if engine is None or engine.is_in_process:  # None: the engine is at fault itself
            return objectives
        for objective in objectives:
            if objective.calls_model:
                raise ValueError(
                    f"{objective.default_name!r} calls the torch model, which `engine: "
                    f"{engine.kind}` has not; measure it with `engine: transformers`"
                )
        return objectives

    @field_validator("rewards")
    @classmethod
    def _named_rewards(cls, rewards: tuple[Reward, ...]) -> tuple[Reward, ...]:
        named = tuple(
            r if r.name else r.model_copy(update={"name": reward_name(r)}) for r in rewards
        )
        _require_distinct([r.name for r in named], "rewards")
        return named

    @model_validator(mode="after")
    def _one_trainer(self) -> Recipe:
        given = {name: getattr(self, name) for name in PARADIGMS}
        named = [
            f"`{name}`"
            for name, section in given.items()
            if section or (section is not None and name != "sft")
        ]
        if len(named) > 1:
            raise ValueError(
                f"give one of {' and '.join(named)}: it says how the model is trained"
            )
        if self.watch is not None and not self.objectives:
            raise ValueError("`watch` measures `objectives`; list some")
        if self.grpo is not None and not self.rewards:
            raise ValueError("`grpo` needs `rewards`, such as `[{kind: numeric}]`")
        if self.rewards and self.grpo is None:
            raise ValueError("`rewards` are for `grpo`; give that section, if only as `{}`")
        return self

    @field_validator("objectives")
    @classmethod
    def _named(cls, objectives: tuple[ObjectiveSection, ...]) -> tuple[ObjectiveSection, ...]:
        named = tuple(
            o if o.name else o.model_copy(update={"name": o.default_name}) for o in objectives
        )
        _require_distinct([o.name for o in named], "objectives")
        missing = [role for role in get_args(Role) if role not in {o.role for o in named}]
        if named and missing:
            raise ValueError(f"no objective has the role `{missing[0]}`; each role needs one")
        return named


def _require_distinct(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two {what} are called {twice[0]!r}; give one a `name` of its own")
