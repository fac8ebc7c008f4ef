"""From a client's form to sequences at the engine."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from functools import partial

import numpy as np
from starlette.concurrency import run_in_threadpool

from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm.access import ANYBODY, RateLimits
from dispatchgym.serving.llm.forms import ChatRequest, CompletionRequest, Wishes, wishes_of
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.generation import Generation
from dispatchgym.serving.llm.sequences import BusyError, Wanted
from dispatchgym.serving.llm.texts import Language
from dispatchgym.serving.wire import RequestError

LONG_TEXT = 4096
"""Characters from which a text is tokenized in a thread: others would wait for it."""
LONGEST_STOP = 512
"""Characters of a stop string."""


class Asking:
    """Reads forms, tokenizes, counts against the tenant's limits, and queues.

    Args:
        model: name that clients must ask for.
        rates: of each tenant.
        deadline_s: of requests that give none.
    """

    def __init__(
        self, frontend: Frontend, language: Language, model: str, rates: RateLimits, deadline_s: float | None = None
    ) -> None:
        self.frontend = frontend
        self.language = language
        self.model = model
        self._rates = rates
        self._deadline_s = deadline_s

    async def ask(
        self,
        form: CompletionRequest | ChatRequest,
        headers: Mapping[str, str],
        tenant: str | None,
        arrived_s: float | None = None,
    ) -> Generation:
        """Queue a request.

        Args:
            tenant: whose key it came with, None where none was demanded.
            arrived_s: when it came, by the frontend's clock; None for now.

        Raises:
            RequestError: something that the model or the engine cannot do. BusyError, UnavailableError: not now.
        """
        wishes = wishes_of(form, headers)
        if tenant is not None and wishes.tenant not in (None, tenant):
            raise RequestError("tenant: not the one that the API key belongs to")
        whose = tenant or wishes.tenant or ANYBODY
        stops = form.stops
        if any(len(stop) > LONGEST_STOP for stop in stops):
            raise RequestError(f"stop: longer than {LONGEST_STOP} characters")
        n = form.n or 1
        if isinstance(form, CompletionRequest) and form.best_of not in (None, n):
            raise RequestError("best_of: must be n; this server gives every output that it makes")
        prompts = await self._prompts(form)
        seed = form.seed if form.seed is not None else secrets.randbits(63)
        wanted = [
            Wanted(prompt, _max_new(form), self._sampling(form, (seed + 2**63 + i) % 2**64 - 2**63))
            for prompt in prompts
            for i in range(n)
        ]
        count = sum(len(prompt) for prompt in prompts)
        wait_s = self._rates.take(whose, 1, n * (count + len(prompts) * (_max_new(form) or 0)))
        if wait_s > 0:
            self.frontend.metrics.turned_away("rate")
            raise BusyError(f"tenant {whose}: the rate limit of {self._rates} is reached", wait_s)
        group = self.frontend.submit(
            wanted, whose, _columns(wishes, whose), wishes.ttft_slo_s, wishes.tpot_slo_s, arrived_s
        )
        deadline_s = self._deadline_s if wishes.deadline_s is None else wishes.deadline_s
        return Generation(self.frontend, self.language, group, count, stops, deadline_s)

    async def _prompts(self, form: CompletionRequest | ChatRequest) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
        if isinstance(form, ChatRequest):
            messages = [message.plain() for message in form.messages]
            length = sum(len(message["content"]) for message in messages)
            found = [await _aside(length, partial(self.language.encode_chat, messages))]
        else:
            found = []
            for prompt in form.prompts:
                if isinstance(prompt, str):
                    found.append(await _aside(len(prompt), partial(self.language.encode, prompt)))
                elif max(prompt) >= self.language.vocabulary:
                    raise RequestError(f"prompt: token ids must be below {self.language.vocabulary}")
                else:
                    found.append(prompt)
        if not all(found):
            raise RequestError("prompt: holds no token")
        return [np.array(ids, np.int32) for ids in found]

    def _sampling(self, form: CompletionRequest | ChatRequest, seed: int) -> Sampling:
        if isinstance(form, ChatRequest):
            if form.top_logprobs and not form.logprobs:
                raise RequestError("top_logprobs: needs logprobs true")
            logprobs = (form.top_logprobs or 0) if form.logprobs else -1
        else:
            logprobs = -1 if form.logprobs is None else form.logprobs
        return Sampling(
            max_new=1,  # the frontend knows how many there is room for
            temperature=1.0 if form.temperature is None else form.temperature,
            top_k=max(form.top_k or 0, 0),
            top_p=1.0 if form.top_p is None else form.top_p,
            seed=seed,
            stop=() if form.ignore_eos else tuple(sorted(self.language.ends)),
            ignore_eos=bool(form.ignore_eos),
            logprobs=logprobs,
        )


def _max_new(form: CompletionRequest | ChatRequest) -> int | None:
    if isinstance(form, ChatRequest) and form.max_completion_tokens is not None:
        return form.max_completion_tokens
    return form.max_tokens


def _columns(wishes: Wishes, tenant: str) -> dict[str, float]:
    """What the scheduler sees of a request beside its lengths and bounds."""
    return {
        "priority": wishes.priority,
        "tenant": number_of(tenant),
        "session": -1 if wishes.session is None else number_of(f"{tenant}/{wishes.session}"),
        "program": -1 if wishes.program is None else number_of(f"{tenant}/{wishes.program}"),
    }


def number_of(name: str) -> int:
    """A number below 2**31 that stands for a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).digest()) >> 1


async def _aside(length: int, work: partial[list[int]]) -> list[int]:
    """Done at once if it is little, else in a thread."""
    return await run_in_threadpool(work) if length > LONG_TEXT else work()
