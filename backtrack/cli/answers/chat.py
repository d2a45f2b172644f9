"""The command `chat`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    BaseOption,
    JsonOption,
    QuietOption,
    RunArgument,
    TrustOption,
    VerboseOption,
)
from backtrack.cli.targets import named_points, open_run
from backtrack.errors import BacktrackError
from backtrack.formatting import visible
from backtrack.point import Point, find_point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backtrack.evaluate.conversation import Conversation
    from backtrack.evaluate.language_model import Sampling
    from backtrack.path.placement import Placement

HELP = """\
/at POINT   go to base, chosen, final, STEP:ALPHA, or ALPHA of the last step
/base       go to the base
/final      go to the final checkpoint
/both       answer at the base and at the point, side by side; again to stop
/reset      forget what was said
/help       show this
/quit       leave (or Ctrl-D)"""


@app.command()
def chat(
    run: RunArgument = None,
    base: BaseOption = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="POINT",
            help="Where the model begins: base, chosen, final, STEP:ALPHA, or ALPHA of the last "
            "step; default: the chosen point, or the final checkpoint.",
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    max_tokens: Annotated[
        int,
        typer.Option(min=1, help="Tokens of an answer at most, and half of the model's context."),
    ] = 512,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sample at this temperature; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampled answers.")] = 0,
    *,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Talk to the model at a point of the path, and move it while talking.

    Each line is a turn, or a command: /at 0.6, /at 240:0.4, /base, /final, /both, /reset, /help,
    /quit. Turns are put through the run's chat template; without one, the model continues them as
    plain text. With --json each answer is a line of JSON.
    """
    opened = open_run(run, base, None, may_run_code=may_run_code)
    named = named_points(opened)
    start = find_point(at or ("chosen" if "chosen" in named else "final"), named)
    with terminal.progress("loading", is_quiet=is_quiet or is_json):
        from backtrack.evaluate.conversation import Conversation
        from backtrack.evaluate.language_model import CompletionLimits
        from backtrack.evaluate.torch_model import TorchModel
        from backtrack.path.placement import place_as_asked

        placement = place_as_asked(opened)
        placement.place(start)
        model = TorchModel(placement.model, placement.tokenizer, "auto")
    room = model.context_tokens
    max_tokens = max_tokens if room is None else min(max_tokens, max(room // 2, 1))
    limits, sampling = CompletionLimits(max_tokens, ()), _sampling(temperature, seed)
    conversation = Conversation(model, limits, sampling, system)
    talk = _Talk(placement, named, conversation, is_json=is_json, is_quiet=is_quiet)
    talk.note(f"{placement.point} of {opened.path}. /help lists the commands.")
    for line in _lines(talk):
        if talk.is_over(line.strip()):
            break


def _sampling(temperature: float, seed: int) -> Sampling | None:
    from backtrack.evaluate.language_model import Sampling

    return Sampling(1, temperature, seed=seed) if temperature else None


def _lines(talk: _Talk) -> Iterator[str]:
    """What the user types, or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):  # on Windows
        import readline  # noqa: F401  # `input` then edits its line and remembers earlier ones

    while True:
        try:
            yield input(f"{talk.where}> ")
        except EOFError:
            return


class _Talk:
    """A conversation and where on the path it is answered."""

    def __init__(
        self,
        placement: Placement,
        named: Mapping[str, Point],
        conversation: Conversation,
        *,
        is_json: bool,
        is_quiet: bool,
    ) -> None:
        self._placement, self._named, self._here = placement, named, conversation
        self._at_base: Conversation | None = None
        self._is_json, self._is_quiet = is_json, is_quiet

    @property
    def where(self) -> str:
        """The point, and the base if it answers too."""
        return f"{'base and ' if self._at_base else ''}{self._placement.point}"

    def note(self, text: str) -> None:
        """Tell the user something that is no answer."""
        if not (self._is_quiet or self._is_json):
            terminal.print_note(text)

    def is_over(self, line: str) -> bool:
        """Follow a command or answer a turn; whether the user leaves."""
        if line in ("/quit", "/exit"):
            return True
        try:
            if line.startswith("/"):
                self._follow(line)
            elif line:
                self._answer(line)
        except BacktrackError as error:
            if not sys.stdin.isatty():
                raise
            terminal.print_error(str(error))
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self.note("interrupted: the turn is forgotten.")
        return False

    def _follow(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        match command:
            case "/at" | "/base" | "/final":
                target = argument.strip() if command == "/at" else command[1:]
                self._placement.place(find_point(target, self._named))
                self.note(f"now at {self.where}")
            case "/both":
                self._at_base = None if self._at_base else self._here.copy()
                self.note(f"now at {self.where}")
            case "/reset":
                self._here.reset()
                self._at_base = self._at_base and self._here.copy()
            case "/help":
                terminal.print_note(HELP)
            case _:
                terminal.print_note(f"There is no command {command}.\n{HELP}")

    def _answer(self, text: str) -> None:
        if self._at_base is None:
            self._print(text, {str(self._placement.point): self._said(self._here, text)})
        else:
            self._print(text, self._both(self._at_base, text))

    def _said(self, conversation: Conversation, text: str) -> str:
        """An answer; it is shown while it is written where it is the only one."""
        is_streamed = not self._is_json and self._at_base is None
        answer = conversation.ask(text, _write if is_streamed else lambda _: None)
        if is_streamed:
            _write("\n")
        return answer

    def _both(self, at_base: Conversation, text: str) -> dict[str, str]:
        here = self._placement.point
        other = self._named["final"] if here.is_base else here
        found = {}
        try:
            for point, conversation in ((Point.base(), at_base), (other, self._here)):
                self._placement.place(point)
                found[str(point)] = self._said(conversation, text)
        finally:
            self._placement.place(here)
        return found

    def _print(self, text: str, answers: Mapping[str, str]) -> None:
        if self._is_json:
            sys.stdout.write(json.dumps({"asked": text, "answers": answers}) + "\n")
        elif len(answers) > 1:
            table = terminal.PlainTable(box=None, pad_edge=False, expand=True)
            for point in answers:
                table.add_column(point)
            table.add_row(*answers.values())
            terminal.out.print(table)


def _write(piece: str) -> None:
    sys.stdout.write(visible(piece))
    sys.stdout.flush()
