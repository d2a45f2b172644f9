"""The table of PEFT's tuners: how each moves from the base, and which have no path.

A tuner has a NATIVE curve if some of its tensors, set to an IDENTITY value, make the adapted model
the base; those tensors are its handles. The part of a tensor's name that PEFT gives it decides
which rule it follows:

    rule       identity                        law      for
    zero       0                               linear   factors, spectra, values
    generator  0                               root     skew generators and angles of rotations
    shared     0                               root     a bank that both factors are taken from
    one        1                               linear   scales
    eye        the identity matrix             linear   PSOFT without orthogonality
    norms      row norms of W0                 linear   DoRA's magnitude
    base       the base's own values           linear   norms, rows of the embedding
    turn       each pair's first vector        turn     Householder vectors, in pairs
    fixed      none, keeps its trained value

The root is PEFT-Arena's for the generator of a rotation (arXiv 2605.28819); it is used here for
every rotation, so that a strength means the same for all of them. Extra parameters, trained beside
an adapter (biases, modules_to_save, trainable tokens, embeddings), move on the line from the
base's values under every tuner.

A new PEFT method is one row of `TUNERS`, or one of `NO_PATH` with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, assert_never

from peft import PeftType

from backtrack.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.path.curves import Law
    from backtrack.records import CurveName, Form

Rule = Literal["zero", "generator", "shared", "one", "eye", "norms", "base", "turn", "fixed"]

MAX_ATTACHED_COST = 2.0
"""Relative cost of an attached forward pass above which `form: auto` merges: merging once is then
cheaper than measuring attached."""


@dataclass(frozen=True)
class Tuner:
    """How an adapter of one type moves from the base, and in which forms it can be measured.

    Attributes:
        rules: Rule by a part of the tensor's name; the first key found in the name decides. Empty
            if the tuner has no native curve.
        cost: Time of an attached forward pass relative to the base's, measured on small models.
        is_rotation: Whether it multiplies weights by an orthogonal matrix.
        can_merge: Whether PEFT can write it into the base's weights.
        supports_quantized: Whether it is right, attached, on a base of packed 4-bit or 8-bit
            numbers. The others read the packed numbers as weights: they raise, or (HRA on 8 bit,
            UniLoRA) are silently wrong.
        why_line_only: Why it has no native curve; empty if it has one.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    cost: float = 1.2
    is_rotation: bool = False
    can_merge: bool = True
    supports_quantized: bool = False
    why_line_only: str = ""

    @property
    def forms_and_curves(self) -> tuple[tuple[Form, CurveName], ...]:
        """Every form and curve in which a run of this tuner can be measured, default first."""
        merged: list[tuple[Form, CurveName]] = [("merged", "native"), ("merged", "line")]
        if self.why_line_only:
            return (("merged", "line"),)
        if not self.can_merge:
            return (("attached", "native"),)
        if self.cost <= MAX_ATTACHED_COST:
            return (("attached", "native"), *merged)
        return (*merged, ("attached", "native"))


_LORA = Tuner(
    {
        "lora_magnitude_vector": "norms",
        "lora_B": "zero",
        "lora_embedding_B": "zero",
        "lora_A": "fixed",
        "lora_embedding_A": "fixed",
    },
    supports_quantized=True,
)
_DORA_COST = 1.4

TUNERS: Mapping[PeftType, Tuner] = {
    PeftType.LORA: _LORA,
    PeftType.ADALORA: Tuner(
        {"lora_E": "zero", "lora_A": "fixed", "lora_B": "fixed", "ranknum": "fixed"},
        supports_quantized=True,
    ),
    PeftType.VERA: Tuner(
        {"vera_lambda_b": "zero", "vera_lambda_d": "fixed"}, supports_quantized=True
    ),
    PeftType.PVERA: Tuner(
        {"pvera_lambda_b": "zero", "pvera_lambda_d": "fixed"}, supports_quantized=True
    ),
    PeftType.LOHA: Tuner({"hada_w1_a": "zero", "hada_": "fixed"}, cost=2.0),
    PeftType.LOKR: Tuner(
        {"lokr_w1": "zero", "lokr_w1_a": "zero", "lokr_w1_b": "fixed", "lokr_w2": "fixed",
         "lokr_w2_a": "fixed", "lokr_w2_b": "fixed", "lokr_t2": "fixed"}, cost=2.0
    ),
    PeftType.GRALORA: Tuner(
        {"gralora_B": "zero", "gralora_B_general": "zero", "gralora_A": "fixed",
         "gralora_A_general": "fixed"}, supports_quantized=True
    ),
    PeftType.RANDLORA: Tuner(
        {"randlora_lambda": "zero", "randlora_gamma": "fixed"}, cost=1.5, supports_quantized=True
    ),
    PeftType.MISS: Tuner({"miss_block": "zero"}, supports_quantized=True),
    PeftType.IA3: Tuner({"ia3_l": "one"}, supports_quantized=True),
    PeftType.FOURIERFT: Tuner({"fourierft_spectrum": "zero"}, cost=2.6, supports_quantized=True),
    PeftType.WAVEFT: Tuner({"waveft_spectrum": "zero"}, cost=2.6, supports_quantized=True),
    PeftType.C3A: Tuner({"c3a_kernel": "zero"}, cost=1.5, supports_quantized=True),
    PeftType.SHIRA: Tuner({"shira_weight": "zero"}),
    PeftType.HIRA: Tuner(
        {"hira_B": "zero", "hira_embedding_B": "zero", "hira_": "fixed"}, cost=2.0,
        supports_quantized=True,
    ),
    PeftType.DELORA: Tuner({"delora_lambda": "zero", "delora_": "fixed"}, cost=1.5),
    PeftType.ADAMSS: Tuner({"adamss_B": "zero", "adamss_A": "fixed"}, cost=1.5),
    PeftType.SUPERTUNING: Tuner(
        {"supertuning_values": "zero", "supertuning_lora_B": "zero",
         "supertuning_lora_A": "fixed"}, cost=1.5
    ),
    PeftType.GLORA: Tuner({"X": "zero", "Xu": "zero", "Xd": "fixed"}, cost=2.0),
    PeftType.PEANUT: Tuner({"peanut_B": "zero", "peanut_": "fixed"}, cost=2.0),
    PeftType.TINYLORA: Tuner({"tinylora_v": "zero"}, cost=1.5),
    PeftType.BEFT: Tuner({"beft_bias": "zero"}, cost=1.0, supports_quantized=True),
    PeftType.VBLORA: Tuner(
        {"vblora_vector_bank": "shared", "vblora_": "fixed"}, cost=1.5, supports_quantized=True
    ),
    PeftType.UNILORA: Tuner({"unilora_theta_d": "shared"}, cost=1.5),
    PeftType.OFT: Tuner({"oft_R": "generator"}, is_rotation=True, supports_quantized=True),
    PeftType.BOFT: Tuner(
        {"boft_R": "generator", "boft_s": "one"}, cost=12.0, is_rotation=True,
        supports_quantized=True,
    ),
    PeftType.PSOFT: Tuner(
        {"vector_a": "one", "vector_b": "one", "psoft_R": "generator"}, is_rotation=True
    ),
    PeftType.ROAD: Tuner(
        {"road_theta": "generator", "road_alpha": "one"}, is_rotation=True, supports_quantized=True
    ),
    PeftType.HRA: Tuner({"hra_u": "turn"}, cost=7.0, is_rotation=True),
    PeftType.LN_TUNING: Tuner({"ln_tuning_layers": "base"}, cost=1.0),
    PeftType.TRAINABLE_TOKENS: Tuner({"trainable_tokens_delta": "base"}, cost=1.0),
    PeftType.LILY: Tuner(
        {"lily_B": "zero", "lily_": "fixed"}, can_merge=False, supports_quantized=True
    ),
    PeftType.DEFT: Tuner(why_line_only="DEFT's identity depends on the trained projection"),
    PeftType.FROD: Tuner(why_line_only="FRoD decomposes the base again, exact to rounding only"),
    PeftType.OSF: Tuner(
        why_line_only="OSF's factors are a singular value decomposition, whose signs differ "
        "between machines"
    ),
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
    PeftType.XLORA: "a router mixes its adapters input by input, so its weights are not one point",
    PeftType.POLY: "it mixes skills by a task number that a language model's input does not carry",
    PeftType.SHADOW: "a second network runs beside the base, so no weight of the base moves",
}
"""Every tuner that has no path, and why."""


def tuner_of(config: Any) -> Tuner:
    """The table's row for an adapter's configuration, adjusted to its options.

    Raises:
        PlacementError: The method has no path from the base, or is not in the table.
    """
    kind = PeftType(config.peft_type)
    if kind in NO_PATH or config.is_prompt_learning:
        raise PlacementError(
            f"{kind.value} has no path from the base: {NO_PATH.get(kind, _PROMPTS)}. Choose "
            "among its checkpoints by hand, or train a method that has one, such as LoRA or OFT."
        )
    if kind not in TUNERS:
        raise PlacementError(
            f"the path of {kind.value} is not known here. Merge each checkpoint into a whole "
            "model and adopt those."
        )
    tuner = TUNERS[kind]
    match kind:
        case PeftType.LORA:
            return _lora_of(config)
        case PeftType.HRA if config.r % 2 or config.apply_GS:
            return _line_only(
                tuner,
                "an odd number of reflections, or Gram-Schmidt, never turns into the identity",
            )
        case PeftType.PSOFT if not config.psoft_orth:
            rules: Mapping[str, Rule] = {**tuner.rules, "psoft_R": "eye"}
            return replace(tuner, rules=rules, is_rotation=False)
        case PeftType.MISS if config.init_weights == "bat":
            return replace(tuner, supports_quantized=False)
        case _:
            return tuner


def _line_only(tuner: Tuner, why: str) -> Tuner:
    # Measured merged only, and a quantized base allows attached only.
    return replace(tuner, rules={}, why_line_only=why, supports_quantized=False)


def _lora_of(config: Any) -> Tuner:
    """LoRA's variants."""
    if config.arrow_config is not None:
        raise PlacementError(
            "an Arrow router mixes several LoRA adapters input by input, so its weights are "
            "not one point. Adopt the adapters that it mixes, one by one."
        )
    if config.megatron_config:
        raise PlacementError(
            "this LoRA has megatron_config: PEFT would import the module that its megatron_core "
            f"names ({config.megatron_core!r}), and nothing is imported that an adapter names. "
            "Convert it to a LoRA on transformers' own layers, without megatron_config."
        )
    if config.layer_replication:
        raise PlacementError(
            "this LoRA has layer_replication: its base is a deeper model than the one on disk, so "
            "no strength leads back to that one. Save the replicated base as a model of its own, "
            "retrain without layer_replication, and adopt that."
        )
    if config.kasa_config is not None or config.init_lora_weights == "loftq":
        return _line_only(
            _LORA, "its initialization (KaSA, LoftQ) replaces the base by another matrix"
        )
    if config.alora_invocation_tokens is not None:
        return replace(_LORA, can_merge=False)
    return replace(_LORA, cost=_DORA_COST) if config.use_dora else _LORA


def clips_generator(config: Any) -> bool:
    """Whether the method clips its generator, so that strengths above 1 are silently cut."""
    match PeftType(config.peft_type):
        case PeftType.OFT:
            return bool(config.coft)
        case PeftType.PSOFT:
            return bool(config.use_cayley_neumann and config.cayley_neumann_eps is not None)
        case _:
            return False


def require_quantizable(config: Any, form: str, where: str) -> None:
    """Refuse a method or form that would be wrong on a quantized base.

    Args:
        config: The adapter's configuration.
        form: The requested form.
        where: What the message is about: a run's path or a recipe's key.

    Raises:
        PlacementError: Names the reason and what to do.
    """
    remedy = "Give a base in full precision: without `quantization`, and not packed on disk."
    if form == "merged":
        raise PlacementError(
            f"{where}: a merged point on a quantized base would be quantized again, which moves "
            "logits by as much as training does. Use `placement: {form: attached}`, or merge into "
            f"full precision. {remedy}"
        )
    if not tuner_of(config).supports_quantized:
        raise PlacementError(
            f"{where}: {config.peft_type} reads the base's weights, which are packed numbers on a "
            f"quantized base: its points would be wrong. {remedy}"
        )


def rule_of(tuner: Tuner, parts: list[str]) -> Rule | None:
    """The rule for a tensor, given its name split at the dots; None if no key is in the name.

    A key that ends in an underscore matches every part that begins with it.
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
        case "zero" | "one" | "eye" | "norms" | "base" | "fixed":
            return "linear"
        case _:
            assert_never(rule)
