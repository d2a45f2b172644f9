"""The engine of vLLM in its own process, restarted once if it dies.

Promised: a request that failed because the engine died is sent again to a new engine with the same
weights; the output of vLLM goes to a log file, not to the standard streams; a failed start raises
one error that names the setting to change.
Not promised: a second retry. A request at which two engines died fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from backtrack.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # send no usage statistics
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork after torch has run may hang
}
"""Variables set unless the user has set them."""
_LONG_ENOUGH_SECONDS = 2.0
"""How long a process may take to exit before it is killed."""
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|No available memory|less than desired|less than requested memory|"
    r"larger than the available KV cache|KV cache is needed|KV cache memory|"
    r"Cannot allocate memory|MemoryError",
    re.IGNORECASE,
)
_FAULT = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|error)\b: .+")


class Adapter(NamedTuple):
    """A LoRA adapter in a folder, with a unique number."""

    number: int
    folder: Path


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        token_ids: The tokens written.
        logprobs: Log-likelihood of each prompt token after the first, in nats; empty if not
            requested.
        is_top: Whether each of these tokens was the most likely one.
        num_tokens: Tokens read and written.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_top: tuple[bool, ...]
    num_tokens: int


class VllmProcess:
    """The `LLM` of vLLM in its own processes.

    Attributes:
        num_starts: Number of starts, with restarts.
    """

    def __init__(self, arguments: Mapping[str, Any], log: Path) -> None:
        """Start the engine.

        Args:
            arguments: Arguments of the `LLM` of vLLM.
            log: File that the output of vLLM is appended to.

        Raises:
            EngineError: vLLM is not installed, or does not start.
        """
        self._arguments = dict(arguments)
        self._log = log
        self._loaded: Path | None = None
        self.num_starts = 0
        self._llm: Any = self._start()

    @property
    def max_model_len(self) -> int:
        length: int = self._llm.llm_engine.model_config.max_model_len
        return length

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[Any],
        adapters: Sequence[Adapter | None],
    ) -> list[Answer]:
        """Answer all prompts in one batch.

        Args:
            prompts: Token ids of each prompt.
            params: `SamplingParams` of each prompt.
            adapters: Adapter of each prompt; None for the loaded weights alone.

        Raises:
            EngineError: The engine died twice at this request.
        """
        from vllm import TokensPrompt
        from vllm.lora.request import LoRARequest

        asked = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        requests = [
            None if a is None else LoRARequest(f"point-{a.number}", a.number, str(a.folder))
            for a in adapters
        ]
        found = self._with_retry(
            lambda: self._llm.generate(asked, list(params), lora_request=requests, use_tqdm=False)
        )
        return [_answer(output, ids) for output, ids in zip(found, prompts, strict=True)]

    def load(self, folder: Path) -> None:
        """Replace the weights in place by those of a folder written by transformers.

        The folder must exist until the next one is loaded, as a restarted engine reads it again.

        Raises:
            EngineError: The engine died twice at this request.
        """
        self._loaded = folder
        self._with_retry(self._reload)

    def close(self) -> None:
        """Stop the processes of the engine."""
        llm, self._llm = self._llm, None
        if llm is not None:
            with contextlib.suppress(Exception), _output_to(self._log):
                llm.llm_engine.engine_core.shutdown(timeout=_LONG_ENOUGH_SECONDS)

    def _reload(self) -> None:
        with _output_to(self._log):
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self._loaded)})
        # The cached keys and values come from the previous weights.
        self._llm.reset_prefix_cache()

    def _with_retry(self, work: Callable[[], Any]) -> Any:
        """Run `work`, once more in a new engine if the engine dies."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._llm is None:
            self._restart()
        try:
            return work()
        except EngineDeadError:
            logger.warning(
                "the vLLM engine died (its log is %s); a new one is started for the same work.",
                self._log,
            )
            self._restart()
        try:
            return work()
        except EngineDeadError as error:
            self.close()
            raise EngineError(
                f"the vLLM engine died twice at the same work; its log is {self._log}. "
                "What was measured is kept. If it ran out of memory, lower `engine.memory_share`, "
                "`engine.max_model_len` or `engine.max_loras` in the recipe."
            ) from error

    def _restart(self) -> None:
        self.close()
        self._llm = self._start()
        if self._loaded is not None:
            self._reload()

    def _start(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        begin = self._log.stat().st_size if self._log.exists() else 0
        try:
            with _output_to(self._log), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from vllm import LLM

                llm = LLM(**_of_platform(), **self._arguments)
        except ImportError as error:
            raise EngineError(
                f"`engine: vllm` needs vLLM, which cannot be imported: {error}. Install it "
                "(`pip install vllm`), or measure with `engine: transformers`."
            ) from error
        except Exception as error:
            raise EngineError(self._explain(error, begin)) from error
        finally:
            logging.getLogger("vllm").setLevel(logging.ERROR)
        self.num_starts += 1
        return llm

    def _explain(self, error: Exception, begin: int) -> str:
        """Explain a failed start from the output of vLLM."""
        with self._log.open("rb") as file:
            file.seek(begin)
            output = f"{file.read().decode('utf-8', 'replace')}\n{type(error).__name__}: {error}"
        memory = next((line for line in output.splitlines() if _MEMORY.search(line)), None)
        if memory is not None:
            share = self._arguments.get("gpu_memory_utilization")
            return (
                f"vLLM does not start for lack of memory: {_last_part(memory)} "
                f"Change `engine.memory_share` in the recipe (now {share}): lower where other "
                "programs hold the device's memory, higher where the model leaves no room for "
                "its cache. Or lower `engine.max_model_len` or `engine.max_loras`. "
                f"Its log is {self._log}."
            )
        faults = _FAULT.findall(output)
        told = [fault for fault in faults if "root cause" not in fault]
        reason = (told or faults or [f"{type(error).__name__}: {error}"])[-1]
        return (
            f"vLLM does not start: {reason.strip()} Compare `engine` in the recipe. "
            f"Its log is {self._log}."
        )


def _of_platform() -> dict[str, Any]:
    """Arguments that depend on the platform.

    NOTE: the CPU build fails at a seeded request whose prompt is read in two chunks, as it rewinds
    a CPU generator ("CPU Generator does not use offset").
    """
    from vllm.platforms import current_platform

    return {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}


def _last_part(line: str) -> str:
    """The message of a log line, without its prefix."""
    fault = _FAULT.search(line)
    text = (fault.group() if fault else line.rpartition("] ")[2]).strip()
    return text if text.endswith(".") else f"{text}."


def _answer(output: Any, prompt: Sequence[int]) -> Answer:
    written = output.outputs[0]
    every = output.prompt_logprobs or [None] * len(prompt)
    given = [at[token] for at, token in zip(every, prompt, strict=True) if at]
    return Answer(
        token_ids=tuple(written.token_ids),
        logprobs=tuple(each.logprob for each in given),
        is_top=tuple(each.rank == 1 for each in given),
        num_tokens=len(prompt) + len(written.token_ids),
    )


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Redirect both standard streams to a file.

    Processes started inside inherit the redirection, so their later output goes there too.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with log.open("ab") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)
            os.close(own)
