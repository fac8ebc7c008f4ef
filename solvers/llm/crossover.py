"""When prompts and decodes do better in steps of their own than mixed: EB+'s closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dispatchgym.envs.llm.profile import Profile
from dispatchgym.solvers.llm.costs import decode_s


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the closed form knows of the requests.

    Args:
        requests: that are served at a time.
        prompt, output: mean tokens of each; outputs end with the same chance after every token.
    """

    requests: float
    prompt: float
    output: float


@dataclass(frozen=True, slots=True)
class Lines:
    """Step times as straight lines: so many seconds a step, and a token of it, for steps of prompts alone, of
    decodes alone, and of both in the traffic's proportion."""

    prompt_s: float
    prompt_token_s: float
    decode_s: float
    decode_token_s: float
    mixed_s: float
    mixed_token_s: float


def lines(profile: Profile, traffic: Traffic, budget: int) -> Lines:
    """Through the profile's times at half and at all of the traffic's requests; of prompts, of the step's `budget`.

    Departure from EB+, whose mixed steps all hold the same share of prompt tokens: prompts are read whole, so that
    where less than one comes a step, the other steps decode alone.
    """
    prompt, output = traffic.prompt, traffic.output
    held = prompt + output / 2

    def device(tokens: float, prompts: float, decodes: float) -> float:
        seconds = (
            profile.base_s + max(profile.weights_s, profile.token_s * tokens) + profile.row_s * (prompts + decodes)
        )
        seconds += profile.pair_s * prompts * prompt * (prompt + 1) / 2 + profile.chunk_s * prompts
        return seconds + profile.context_s * decodes * held

    def of_prompts(tokens: float) -> float:
        return max(device(tokens, tokens / prompt, 0.0), profile.host_s) + profile.rebuild_s

    def of_decodes(tokens: float) -> float:
        return decode_s(profile, round(tokens), round(tokens * held))

    def of_both(tokens: float) -> float:
        come = tokens / (prompt + output)  # prompts that a step must read to keep up, each at once
        several, decodes = max(1.0, come), come * output
        host = profile.host_s + profile.host_mixed_s
        mixed = max(device(several * prompt + decodes, several, decodes) + profile.mixed_s, host) + profile.rebuild_s
        return mixed if come >= 1 else come * mixed + (1 - come) * of_decodes(decodes)

    whole = (budget, max(2.0, traffic.requests), traffic.requests * (prompt + output) / (1 + output))
    found = []
    for of, tokens in zip((of_prompts, of_decodes, of_both), whole, strict=True):
        slope = max(0.0, (of(tokens) - of(tokens / 2)) / (tokens / 2))
        found += [max(0.0, of(tokens) - slope * tokens), slope]
    return Lines(*found)


def refill_share(line: Lines, traffic: Traffic) -> float:
    """Share of the requests that must have ended before it pays to read prompts again: theta_0 of proposition 1.

    The root of theta / (1 - theta) + ln(1 - theta) = -ln(1 - p) * alpha_p / alpha_d, p being the chance to end.
    """
    ends = min(1.0 / max(traffic.output, 1.0), 1 - 1e-9)
    right = -math.log1p(-ends) * line.prompt_s / max(line.decode_s, 1e-12)
    low, high = 1e-6, 1 - 1e-6
    for _ in range(50):
        middle = (low + high) / 2
        if middle / (1 - middle) + math.log1p(-middle) < right:
            low = middle
        else:
            high = middle
    return low


def saved_s(line: Lines, share: float, traffic: Traffic) -> float:
    """Seconds a token that steps of their own save over mixed ones: Delta(N) of proposition 4. Below 0 mixing wins.

    A cycle of steps of their own ends and reads `share` of the requests, after -ln(1 - share) * output decode steps;
    a mixed step reads and ends one request in 1 + output.
    """
    tokens = traffic.prompt + traffic.output
    share = min(max(share, 1 / traffic.requests), 1 - 1e-6)  # one at least
    own = (line.prompt_s - line.decode_s * math.log1p(-share) * traffic.output) / (share * traffic.requests)
    own += line.prompt_token_s * traffic.prompt + line.decode_token_s * traffic.output
    mixed = line.mixed_s * (1 + traffic.output) / traffic.requests + line.mixed_token_s * tokens
    return (mixed - own) / tokens


def most_requests(share: float, traffic: Traffic, pool_tokens: int, risk: float) -> int:
    """Requests at a time whose KV outgrows the pool with a chance of `risk` at most: N of proposition 3."""
    ends = 1.0 / max(traffic.output, 1.0)
    each = traffic.prompt - (1 - share) / (share * ends) * math.log1p(-share)
    spare = math.log(1 / risk) / (ends**2 * traffic.prompt)
    return max(1, int((pool_tokens - spare) / each))
