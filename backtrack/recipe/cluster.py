"""The recipe's section on measuring by several processes, on one machine or a Ray cluster."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from backtrack.recipe.sections import Section


class ClusterSection(Section):
    """Actors that measure: processes with a model each, started by Ray."""

    actors: Annotated[int, Field(ge=1)] = 1
    """Actors that measure at the same time; 1 without `address` is this process itself. More than
    `search.round_size` are of little use."""
    address: str | None = None
    """Address of a running Ray cluster, or `auto` for the one this machine belongs to; none starts
    Ray on this machine for as long as the command runs."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of one actor; a fraction shares one. `auto` is one, or a share of one where there are
    fewer GPUs than actors, and none where the cluster has none."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1
    """CPUs of one actor; on a CPU, also the threads it computes by."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further resources of Ray's that an actor takes, such as `{accelerator_type:H100: 0.001}`."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the actors: `pip`, `env_vars`, `working_dir` and so on."""

    @property
    def is_one_process(self) -> bool:
        """Whether this process measures by itself."""
        return self.actors == 1 and self.address is None
