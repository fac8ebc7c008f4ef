"""The output of a request as text, piece by piece, over all its sequences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from dispatchgym.envs.api import DispatchGymError
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.messages import Output
from dispatchgym.serving.llm.sequences import Group
from dispatchgym.serving.llm.texts import Language, StopScan, TextStream


class DeadlineError(DispatchGymError):
    """The request took longer than it was given."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token of the output, its logarithmic probability, and the likeliest at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What came of one sequence.

    Attributes:
        index: which one.
        text: to be appended; may be "".
        tokens: with logprobs, where they were asked for.
        reason: "" while it goes on; "stop" or "length".
    """

    index: int
    text: str
    tokens: tuple[TokenInfo, ...] = ()
    reason: str = ""

    def with_more(self, later: Piece) -> Piece:
        """This and the next of the same sequence."""
        return Piece(self.index, self.text + later.text, self.tokens + later.tokens, later.reason)


@dataclass(slots=True)
class Usage:
    """Tokens that a request has used."""

    prompt: int
    completion: int = 0
    cached: int = 0

    def plain(self) -> dict[str, object]:
        """As answers give it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Generation:
    """A request that has been queued. Iterate over it for its pieces; leaving early cancels what is left.

    Attributes:
        usage: so far.

    Args:
        prompt_tokens: of all different prompts.
        stops: strings that end a sequence.
        deadline_s: seconds from now until it is given up, None for never.
    """

    def __init__(
        self,
        frontend: Frontend,
        language: Language,
        group: Group,
        prompt_tokens: int,
        stops: Sequence[str],
        deadline_s: float | None,
    ) -> None:
        self._frontend = frontend
        self._language = language
        self._group = group
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self._until = None if deadline_s is None else self._clock() + deadline_s
        self._texts = [TextStream(language) for _ in group.sequences]
        self._scans = [StopScan(stops) for _ in group.sequences]
        self._cached = [0] * len(group.sequences)
        self.usage = Usage(prompt_tokens)

    @property
    def num_choices(self) -> int:
        """Sequences of the request."""
        return len(self._group.sequences)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces in the order in which they come, until every sequence has ended. What has come of a sequence while
        nobody looked is one piece: under load a stream has fewer events, not later ones.

        Raises:
            DeadlineError: it took too long. DispatchGymError: the engine or the server went down.
        """
        going = len(self._group.sequences)
        try:
            while going:
                found: dict[int, Piece] = {}
                error: DispatchGymError | None = None
                for news in await self._news():
                    try:
                        if isinstance(news, DispatchGymError):
                            raise news
                        piece = self._piece(*news)
                    except DispatchGymError as raised:  # behind what came before it
                        error = raised
                        break
                    if piece is not None:
                        found[piece.index] = found[piece.index].with_more(piece) if piece.index in found else piece
                for piece in found.values():
                    going -= bool(piece.reason)
                    yield piece
                if error is not None and going:
                    raise error
        finally:
            self._frontend.cancel(self._group)

    def cancel(self) -> None:
        """Give up what has not ended; for a request whose pieces nobody has begun to take."""
        self._frontend.cancel(self._group)

    async def _news(self) -> list[tuple[int, Output] | DispatchGymError]:
        """Wait for news, and take all there are."""
        queue = self._group.news
        try:
            async with asyncio.timeout_at(self._until):
                found = [await queue.get()]
        except TimeoutError:
            raise DeadlineError("the request took longer than its deadline") from None
        while not queue.empty():
            found.append(queue.get_nowait())
        return found

    def _piece(self, index: int, output: Output) -> Piece | None:
        scan, text = self._scans[index], self._texts[index]
        if scan.has_hit:
            return None  # put out before the engine heard that it shall stop
        if output.reason == "dropped":
            raise DispatchGymError("the scheduler gave this request up")
        self.usage.completion += len(output.tokens)
        self._cached[index] = max(self._cached[index], output.cached)
        self.usage.cached = max(self._cached)
        ids = output.tokens[:-1] if output.reason == "stop" else output.tokens
        said = text.push(ids)
        if output.reason:
            said += text.flush()
        told = scan.push(said, last=bool(output.reason))
        reason = output.reason
        if scan.has_hit:
            reason = "stop"
            self._frontend.stopped(self._group, index)
        infos = tuple(TokenInfo(t, *lp) for t, lp in zip(output.tokens, output.logprobs, strict=False))
        return Piece(index, told, infos[: len(ids)], reason) if told or infos or reason else None
