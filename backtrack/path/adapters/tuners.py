"""Which tuner of PEFT has what path: the one table, and the tuners that have none.

A tuner is served on its NATIVE curve where some of its tensors, taken to an IDENTITY value, make
the adapter the base; those tensors are its handles. Which tensor goes where is written by the part
of its name that PEFT gives it:

    rule       identity                        law      for
    zero       0                               linear   factors, spectra, values
    generator  0                               root     skew generators and angles of rotations
    shared     0                               root     a bank that both factors are taken from
    one        1                               linear   scales
    eye        the identity matrix             linear   PSOFT without orthogonality
    norms      row norms of W0                 linear   DoRA's magnitude
    base       the base's own values           linear   norms, rows of the embedding
    turn       each pair's first vector        turn     Householder vectors, two and two
    still      none, stays at its trained value

The root is PEFT-Arena's for the generator of a rotation (arXiv 2605.28819); it is taken here for
every rotation, so that a strength means the same for all of them. Tensors trained beside an
adapter (bias, modules_to_save, trainable tokens, embeddings) are riders: they move on the line
from the base's values, whatever the tuner.

The forward cost is that of an attached adapter over the base's own, as measured on small models;
past `MAX_ATTACHED_COST` merging once is cheaper than measuring attached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, assert_never

from peft import PeftType

from backtrack.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.path.curves import Law

Rule = Literal["zero", "generator", "shared", "one", "eye", "norms", "base", "turn", "still"]

MAX_ATTACHED_COST = 2.0
"""Above it a point is measured merged unless asked otherwise."""


@dataclass(frozen=True)
class Tuner:
    """What moves in an adapter of one type.

    Attributes:
        rules: Rule by the part of a tensor's name; the first part that has one decides. None:
            the tuner has no native curve and stands on the dense line.
        cost: Time of an attached forward pass over the base's.
        is_rotation: Whether it multiplies weights by an orthogonal matrix.
        can_merge: Whether PEFT can write it into the base's weights.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    cost: float = 1.2
    is_rotation: bool = False
    can_merge: bool = True

    @property
    def has_native(self) -> bool:
        return bool(self.rules)


_LORA = Tuner(
    {
        "lora_magnitude_vector": "norms",
        "lora_B": "zero",
        "lora_embedding_B": "zero",
        "lora_A": "still",
        "lora_embedding_A": "still",
    }
)
_DORA_COST = 1.4

TUNERS: Mapping[PeftType, Tuner] = {
    PeftType.LORA: _LORA,
    PeftType.ADALORA: Tuner(
        {"lora_E": "zero", "lora_A": "still", "lora_B": "still", "ranknum": "still"}
    ),
    PeftType.VERA: Tuner({"vera_lambda_b": "zero", "vera_lambda_d": "still"}),
    PeftType.PVERA: Tuner({"pvera_lambda_b": "zero", "pvera_lambda_d": "still"}),
    PeftType.LOHA: Tuner({"hada_w1_a": "zero", "hada_": "still"}, cost=2.0),
    PeftType.LOKR: Tuner(
        {"lokr_w1": "zero", "lokr_w1_a": "zero", "lokr_w1_b": "still", "lokr_w2": "still",
         "lokr_w2_a": "still", "lokr_w2_b": "still", "lokr_t2": "still"}, cost=2.0
    ),
    PeftType.GRALORA: Tuner(
        {"gralora_B": "zero", "gralora_B_general": "zero", "gralora_A": "still",
         "gralora_A_general": "still"}
    ),
    PeftType.RANDLORA: Tuner({"randlora_lambda": "zero", "randlora_gamma": "still"}, cost=1.5),
    PeftType.MISS: Tuner({"miss_block": "zero"}),
    PeftType.IA3: Tuner({"ia3_l": "one"}),
    PeftType.FOURIERFT: Tuner({"fourierft_spectrum": "zero"}, cost=2.6),
    PeftType.WAVEFT: Tuner({"waveft_spectrum": "zero"}, cost=2.6),
    PeftType.C3A: Tuner({"c3a_kernel": "zero"}, cost=1.5),
    PeftType.SHIRA: Tuner({"shira_weight": "zero"}),
    PeftType.HIRA: Tuner(
        {"hira_B": "zero", "hira_embedding_B": "zero", "hira_": "still"}, cost=2.0
    ),
    PeftType.DELORA: Tuner({"delora_lambda": "zero", "delora_": "still"}, cost=1.5),
    PeftType.ADAMSS: Tuner({"adamss_B": "zero", "adamss_A": "still"}, cost=1.5),
    PeftType.SUPERTUNING: Tuner(
        {"supertuning_values": "zero", "supertuning_lora_B": "zero",
         "supertuning_lora_A": "still"}, cost=1.5
    ),
    PeftType.GLORA: Tuner({"X": "zero", "Xu": "zero", "Xd": "still"}, cost=2.0),
    PeftType.PEANUT: Tuner({"peanut_B": "zero", "peanut_": "still"}, cost=2.0),
    PeftType.TINYLORA: Tuner({"tinylora_v": "zero"}, cost=1.5),
    PeftType.BEFT: Tuner({"beft_bias": "zero"}, cost=1.0),
    PeftType.VBLORA: Tuner({"vblora_vector_bank": "shared", "vblora_": "still"}, cost=1.5),
    PeftType.UNILORA: Tuner({"unilora_theta_d": "shared"}, cost=1.5),
    PeftType.OFT: Tuner({"oft_R": "generator"}, is_rotation=True),
    PeftType.BOFT: Tuner(
        {"boft_R": "generator", "boft_s": "one"}, cost=12.0, is_rotation=True
    ),
    PeftType.PSOFT: Tuner(
        {"vector_a": "one", "vector_b": "one", "psoft_R": "generator"}, is_rotation=True
    ),
    PeftType.ROAD: Tuner({"road_theta": "generator", "road_alpha": "one"}, is_rotation=True),
    PeftType.HRA: Tuner({"hra_u": "turn"}, cost=7.0, is_rotation=True),
    PeftType.LN_TUNING: Tuner({"ln_tuning_layers": "base"}, cost=1.0),
    PeftType.TRAINABLE_TOKENS: Tuner({"trainable_tokens_delta": "base"}, cost=1.0),
    PeftType.LILY: Tuner({"lily_B": "zero", "lily_": "still"}, can_merge=False),
    # On the dense line only: see `_only_dense` for the reasons.
    PeftType.DEFT: Tuner(),
    PeftType.FROD: Tuner(),
    PeftType.OSF: Tuner(),
}  # fmt: skip
"""Every tuner that has a path."""

_PROMPTS = "it adds prompts, not weights, so there is no path of weights from the base to it"
NO_PATH: Mapping[PeftType, str] = {
    PeftType.PROMPT_TUNING: _PROMPTS,
    PeftType.MULTITASK_PROMPT_TUNING: _PROMPTS,
    PeftType.P_TUNING: _PROMPTS,
    PeftType.PREFIX_TUNING: _PROMPTS,
    PeftType.CPT: _PROMPTS,
    PeftType.CARTRIDGE: "it adds a cache of keys and values, not weights",
    PeftType.ADAPTION_PROMPT: "it adds gated prompts to the attention, not weights",
    PeftType.XLORA: "a router mixes its adapters input by input, so its weights are no one point",
    PeftType.POLY: "it mixes skills by a task number that a language model's input does not carry",
    PeftType.SHADOW: "a second network runs beside the base, so no weight of the base moves",
}
"""Every tuner that has none, and why."""


def tuner_of(config: Any) -> Tuner:
    """What moves in an adapter with this configuration.

    Raises:
        PlacementError: The method has no path of weights, or is unknown here.
    """
    kind = PeftType(config.peft_type)
    if kind in NO_PATH or config.is_prompt_learning:
        raise PlacementError(
            f"{kind.value} has no path from the base: {NO_PATH.get(kind, _PROMPTS)}. Choose "
            "among its checkpoints by hand, or train a method that has one, LoRA or OFT."
        )
    if kind not in TUNERS:
        raise PlacementError(
            f"the path of {kind.value} is not known here. Merge each checkpoint into whole models "
            "and adopt those."
        )
    if kind is PeftType.LORA:
        return _lora_of(config)
    if kind is PeftType.HRA and (config.r % 2 or config.apply_GS):
        return Tuner(cost=TUNERS[kind].cost, is_rotation=True)
    if kind is PeftType.PSOFT and not config.psoft_orth:
        return Tuner({**TUNERS[kind].rules, "psoft_R": "eye"})
    return TUNERS[kind]


def is_clamped(config: Any) -> bool:
    """Whether the method clips its generator, so that a strength above 1 is silently cut."""
    match PeftType(config.peft_type):
        case PeftType.OFT:
            return bool(config.coft)
        case PeftType.PSOFT:
            return bool(config.use_cayley_neumann and config.cayley_neumann_eps is not None)
        case _:
            return False


def _lora_of(config: Any) -> Tuner:
    """LoRA's variants."""
    if config.arrow_config is not None:
        raise PlacementError(
            "an Arrow router mixes several LoRA adapters input by input, so its weights are no "
            "one point. Adopt the adapters it mixes, one by one."
        )
    if config.layer_replication:
        raise PlacementError(
            "this LoRA has layer_replication: its base is a deeper model than the one on disk, so "
            "no strength leads back to that one. Save the replicated base as a model of its own, "
            "retrain without layer_replication, and adopt that."
        )
    if config.kasa_config is not None or config.init_lora_weights == "loftq":
        return Tuner(cost=_LORA.cost)
    if config.alora_invocation_tokens is not None:
        return Tuner(_LORA.rules, can_merge=False)
    return Tuner(_LORA.rules, cost=_DORA_COST) if config.use_dora else _LORA


def why_dense(config: Any) -> str:
    """Why a tuner has no native curve."""
    match PeftType(config.peft_type):
        case PeftType.DEFT:
            return "DEFT's identity depends on the trained projection"
        case PeftType.FROD:
            return "FRoD decomposes the base anew, to rounding only"
        case PeftType.OSF:
            return "OSF's factors are a singular value decomposition, whose signs machines choose"
        case PeftType.HRA:
            return "an odd number of reflections, or Gram-Schmidt, never turns into the identity"
        case _:
            return "its initialization (KaSA, LoftQ) puts another matrix in the base's place"


QUANTIZED = frozenset(
    {
        PeftType.LORA, PeftType.ADALORA, PeftType.OFT, PeftType.BOFT, PeftType.IA3, PeftType.VERA,
        PeftType.PVERA, PeftType.MISS, PeftType.RANDLORA, PeftType.ROAD, PeftType.HIRA,
        PeftType.GRALORA, PeftType.FOURIERFT, PeftType.WAVEFT, PeftType.C3A, PeftType.VBLORA,
        PeftType.BEFT, PeftType.LILY,
    }
)  # fmt: skip
"""Tuners that are right on a base of packed 4-bit or 8-bit numbers, attached. The others read its
weights as they lie: they raise, or (HRA on 8 bit, UniLoRA) are silently wrong."""


def require_quantizable(config: Any, form: str, where: str) -> None:
    """Refuse what is wrong on a quantized base.

    Raises:
        PlacementError: With the reason and the way out.
    """
    way_out = "Give the base in full precision: without `quantization`, or another with --base."
    if form == "merged":
        raise PlacementError(
            f"{where}: a merged point on a quantized base would quantize anew, which moves logits "
            f"by as much as training does. Stand attached, or merge into full precision. {way_out}"
        )
    reads_weights = config.peft_type == PeftType.MISS and config.init_weights == "bat"
    if PeftType(config.peft_type) not in QUANTIZED or reads_weights:
        raise PlacementError(
            f"{where}: {config.peft_type} reads the base's weights, which on a quantized base are "
            f"packed numbers: its points would be wrong. {way_out}"
        )


def rule_of(tuner: Tuner, parts: list[str]) -> Rule | None:
    """The rule for a tensor of this name, split at its dots; none for what is no part of it.

    A rule's key that ends in an underscore stands for every part that begins with it.
    """
    for key, rule in tuner.rules.items():
        if key in parts or (key.endswith("_") and any(part.startswith(key) for part in parts)):
            return rule
    return None


def law_of(rule: Rule) -> Law:
    """How a tensor under a rule follows alpha."""
    match rule:
        case "generator" | "shared":
            return "root"
        case "turn":
            return "turn"
        case "zero" | "one" | "eye" | "norms" | "base" | "still":
            return "linear"
        case _:
            assert_never(rule)
