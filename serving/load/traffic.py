"""The traffic that people name on the command line."""

from __future__ import annotations

import os
import secrets
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from dispatchgym.agents.simulation.names import parameter
from dispatchgym.agents.simulation.runs import faster, has_slos, rate_per_s, with_slos
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads import files
from dispatchgym.serving.load.client import secret, secret_in
from dispatchgym.serving.load.run import Style


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent."""

    trace: str = "azure-2023-conv-twin"
    """A public trace, its -twin, a generator (dispatchgym simulate --list), or a file (docs/simulate.md)."""

    requests: int = 200
    """Take so many; 0 for all."""

    skip: int = 0
    """Pass over the first so many of a recorded trace."""

    rate: float | None = None
    """Mean requests a second: the trace's arrivals are moved closer or further apart. Default: as they are."""

    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Parameters of a generator, such as distribution=2."""

    longest_prompt: int = 0
    """Cut prompts to so many tokens, 0 for none: for servers with less room."""

    longest_output: int = 0
    """Cut outputs to so many tokens, 0 for none."""

    ttft_slo: float | None = None
    """Bound in seconds on the time to the first token, inf for none. Default: the trace's own; 2 without any."""

    tpot_slo: float | None = None
    """Bound in seconds per token after the first, mean of a request. Default: the trace's own; 0.1 without any."""

    seed: int = 0
    """Of whatever is drawn."""

    chat: bool = False
    """Ask /v1/chat/completions."""

    prompts: Literal["text", "ids"] = "text"
    """Text whose tokens the server counts as the trace has them (measured first), or token ids."""

    vocabulary: int = 256
    """Token ids stay below it."""

    ignore_eos: bool = True
    """Ask for exactly the trace's output lengths, by a field that vLLM, SGLang and dispatchgym know."""

    api_key_file: Path | None = None
    """File with the key to show; default: the environment's OPENAI_API_KEY, if there is one."""

    timeout_s: float = 600.0
    """Seconds without a byte after which a request counts as failed."""

    @property
    def style(self) -> Style:
        """How requests are put. Each time with other texts, for a server remembers the prompts of earlier runs."""
        return Style(self.chat, self.prompts, self.vocabulary, self.ignore_eos, secrets.randbits(62))

    @property
    def api_key(self) -> str:
        """What is shown to the server.

        Raises:
            UsageError: the file, or the environment, holds no key.
        """
        if self.api_key_file is not None:
            return secret_in(self.api_key_file)
        return secret(os.environ.get("OPENAI_API_KEY", ""), "OPENAI_API_KEY")

    def workload(self, part: int = 0) -> tuple[Workload, list[str]]:
        """The requests, and what a reader should know of them.

        Args:
            part: each is drawn with another seed, or is the next stretch of a recorded trace, from its beginning
                again where it ends.

        Raises:
            UsageError, UnknownNameError, InvalidInstanceError: there is no such traffic.
        """
        for name in ("longest_prompt", "longest_output", "requests", "skip"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} is below 0")
        if self.rate is not None and not self.rate > 0:
            raise UsageError(f"--rate {self.rate} is not above 0")
        notes: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", files.TraceWarning)
            found = self._load(self.seed + part)
        notes += [str(each.message) for each in caught if issubclass(each.category, files.TraceWarning)]
        if self.requests and len(found) > self.requests:
            first = (self.skip + part * self.requests) % (len(found) - self.requests + 1)
            found = found.take(np.arange(first, first + self.requests))
        if self.rate is not None and np.isfinite(rate_per_s(found)):
            found = faster(found, self.rate / rate_per_s(found))
        prompt, output = self.longest_prompt or 2**24, self.longest_output or 2**24
        cut = int(((found.prompt_tokens > prompt) | (found.output_tokens > output)).sum())
        if cut:
            notes.append(f"{cut} of {len(found)} requests were cut to the longest prompt or output")
            found = replace(
                found,
                prompt_tokens=np.minimum(found.prompt_tokens, prompt),
                output_tokens=np.minimum(found.output_tokens, output),
                max_new_tokens=np.minimum(found.max_new_tokens, output),
            )
        ttft_s, tpot_s = self.ttft_slo, self.tpot_slo
        if ttft_s is None and tpot_s is None and not has_slos(found):
            ttft_s, tpot_s = 2.0, 0.1
            notes.append("the trace has no bounds of its own; every request was given 2 s and 0.1 s per token")
        return with_slos(found, ttft_s, tpot_s), notes

    def _load(self, seed: int) -> Workload:
        wanted = self.requests or None
        parameters = dict(map(parameter, self.set))
        if self.trace in workloads.GENERATORS or self.trace.endswith("-twin"):
            return workloads.load(self.trace, requests=wanted, seed=seed, parameters=parameters)
        try:
            return workloads.load(self.trace, seed=seed, parameters=parameters)
        except UsageError as error:  # no arrival times, unless the rate is not taken either
            if self.rate is None:
                raise
            try:
                return workloads.load(self.trace, rate_per_s=self.rate, seed=seed, parameters=parameters)
            except UsageError:
                raise error from None
