"""Both ends are exact, whatever the method, the type and the process's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from backtrack.errors import BacktrackError
from backtrack.exporter import export
from backtrack.path.models.loading import load_model
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records.run import Quantization
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from tests.gpu.session import Figure, Session, SkippedCheckError, differences
from tests.models import (
    jitter,
    make_base,
    make_full_run,
    make_manifest,
    make_peft_run,
    make_tokenizer,
)
from tests.path.tuners import configs

HALF = Point(step=20, alpha=0.5)
TYPES = {"bfloat16": None, "float32": ("lora", "oft", "boft", "vera"), "float16": ("lora", "oft")}
"""Methods by type of the base; None for all."""
FEW = ("lora", "oft", "lora-modules")


def every_method(session: Session) -> Iterator[Figure]:
    """Opening checks both ends bit for bit; here, of every method as it is placed by default."""
    for dtype, names in TYPES.items():
        base = make_base(session.folder / f"ends-{dtype}", dtype=dtype, width=64)
        chosen = names or (FEW if not session.is_gpu else tuple(configs()))
        refused = [name for name in chosen if not opens(session, base, name)]
        if not opens(session, base, "full"):
            refused.append("full")
        what = f"of {len(chosen) + 1} methods refused in {dtype}"
        yield differences(f"{what} {' '.join(refused)}".strip(), len(refused))


def opens(session: Session, base: Path, name: str, **given: Any) -> bool:
    """Whether a run of the method is opened, moved and moved back on the device."""
    path = session.folder / f"{base.name}-{name}-{'-'.join(map(str, given.values()))}"
    try:
        if not path.exists():
            make(path, base, name)
        placement = Placement(Run.open(path), device=str(session.device), **given)
        placement.place(HALF)
        placement.place(Point.base())
    except BacktrackError as error:
        print(f"    {name}: {str(error)[:150]}", flush=True)
        return False
    return True


def make(path: Path, base: Path, name: str) -> Run:
    torch.manual_seed(0)
    if name == "full":
        return make_full_run(path, base)
    return make_peft_run(path, base, configs()[name])


@contextmanager
def fast_products() -> Iterator[None]:
    """TF32 in products of fp32 matrices, as scripts set it for speed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_tf32(session: Session) -> Iterator[Figure]:
    """Runs in fp32 open where the process computes by TF32 and under autocast."""
    base = make_base(session.folder / "tf32", width=256)
    with fast_products(), torch.autocast(session.device.type, dtype=torch.bfloat16):
        refused = [
            f"{name} {form}"
            for name in ("lora", "oft")
            for form in ("attached", "merged")
            if not opens(session, base, name, form=form)
        ]
    yield differences(f"of 4 refused {' '.join(refused)}".strip(), len(refused))


def with_experts(session: Session) -> Iterator[Figure]:
    """Experts add their outputs up in any order: opened several times, none is refused."""
    sizes: dict[str, Any] = {
        "vocab_size": len(make_tokenizer()), "hidden_size": 128, "intermediate_size": 256,
        "moe_intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 4, "head_dim": 32,
    }  # fmt: skip
    base = session.folder / "experts"
    torch.manual_seed(0)
    model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))
    model.to(torch.bfloat16).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    openings = 5 if session.is_gpu else 1
    refused = sum(not opens(session, base, "full") for _ in range(openings))
    yield differences(f"of {openings} openings refused", refused)


def by_attention(session: Session) -> Iterator[Figure]:
    """Runs open and export under each implementation of attention that transformers has here."""
    for name in ("eager", "sdpa"):
        base = make_base(session.folder / f"attention-{name}", dtype="bfloat16", width=64)
        config = base / "config.json"
        text = config.read_text(encoding="utf-8")
        config.write_text(
            text.replace("{", f'{{"attn_implementation": "{name}",', 1), encoding="utf-8"
        )
        yield differences(f"refused with {name}", int(not opens(session, base, "lora")))


def exports(session: Session) -> Iterator[Figure]:
    """Exports are checked by stock libraries before they take their name."""
    base = make_base(session.folder / "exported", dtype="bfloat16", width=64)
    refused = []
    for name, form in (
        ("lora", "adapter"),
        ("oft", "adapter"),
        ("lora", "merged"),
        ("full", "merged"),
    ):
        run = make(session.folder / f"exported-{name}-{form}", base, name)
        try:
            folder = session.folder / f"export-{name}-{form}"
            export(run, HALF, folder, form=form, device=str(session.device))  # type: ignore[arg-type]
        except BacktrackError as error:
            refused.append(f"{name} {form}: {str(error)[:100]}")
    yield differences(f"of 4 refused {' '.join(refused)}".strip(), len(refused))


def quantized(session: Session) -> Iterator[Figure]:
    """QLoRA on bases that bitsandbytes quantizes: opened, moved, exported."""
    if find_spec("bitsandbytes") is None:
        raise SkippedCheckError("bitsandbytes is not installed")
    base = make_base(session.folder / "quantized", dtype="bfloat16", width=64)
    for bits in ("4bit", "8bit"):
        run = quantized_run(session, base, bits)
        placement = Placement(run, device=str(session.device))
        placement.place(HALF)
        export(run, HALF, session.folder / f"export-{bits}", device=str(session.device))
        yield differences(f"refused in {bits}", 0)


def quantized_run(session: Session, base: Path, bits: Any) -> Run:
    assert bits in str(get_args(Quantization))
    manifest = make_manifest(base, "lora")
    reference = manifest.base.model_copy(update={"quantization": bits})
    run = Run.create(
        session.folder / f"quantized-{bits}", manifest.model_copy(update={"base": reference})
    )
    torch.manual_seed(0)
    loaded = load_model(base, "auto", session.device, quantization=bits)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model: Any = get_peft_model(loaded, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.cpu()
    for step in (10, 20):
        jitter(model, 0.05, seed=step)
        write_checkpoint(run, step, lambda path: model.save_pretrained(str(path)))
    return run


CHECKS = (every_method, with_tf32, with_experts, by_attention, exports, quantized)
