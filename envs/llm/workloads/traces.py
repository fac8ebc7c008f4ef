"""The public request traces: where they come from, where they are looked for, and their requests.

A trace is looked for in the folder llm/ of DISPATCHGYM_DATA, then in the user's cache, where `dispatchgym data get`
puts what it downloads. Nothing is downloaded unasked.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dispatchgym.envs.api import InvalidInstanceError, UsageError
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads import files
from dispatchgym.envs.registry import unknown_name

FAMILY = "llm"

TIMEOUT_S = 60.0
LARGEST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Trace:
    """A published trace.

    Args:
        requests: how many. file: a name it may have beside the published one, without .gz.
        url: of the publication, fixed to one revision. sha256: of the file there.
        digests: of other forms of the same numbers that are taken too.
        lengths_only: there are no arrival times, a rate must be given.
        spread: arrival times are rounded, see `files.read`.
    """

    requests: int
    file: str
    url: str
    sha256: str
    source: str
    licence: str
    about: str
    digests: tuple[str, ...] = ()
    lengths_only: bool = False
    spread: bool = False

    @property
    def published_file(self) -> str:
        """Its name where it was published."""
        return self.url.rpartition("/")[2]


_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/b469a113cedca53ddc3bdea71a143dc4b7d8700c/data/"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3b5a594133958449a1feaf1c9e0fc1b553e34a28/"
_VIDUR = "https://raw.githubusercontent.com/microsoft/vidur/7d47513363ec447a741ac5e47241580b47724fbf/data/"
_SERVING_SIM = (
    "https://raw.githubusercontent.com/casys-kaist/LLMServingSim/5daddb21a545658d5150b535712d0494584b5278/workloads/"
)

TRACES: Mapping[str, Trace] = {
    "azure-2023-conv": Trace(
        19_366,
        "azure_llm_2023_conv.csv",
        f"{_AZURE}AzureLLMInferenceTrace_conv.csv",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        "Azure, Patel et al. (2024)",
        "CC-BY 4.0",
        "conversation service, one hour",
    ),
    "azure-2023-code": Trace(
        8_819,
        "azure_llm_2023_code.csv",
        f"{_AZURE}AzureLLMInferenceTrace_code.csv",
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        "Azure, Patel et al. (2024)",
        "CC-BY 4.0",
        "code completion, one hour in bursts, short outputs",
    ),
    "mooncake-conversation": Trace(
        12_031,
        "mooncake_conversation_trace.jsonl",
        f"{_MOONCAKE}FAST25-release/traces/conversation_trace.jsonl",
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        "Qin et al. (2025)",
        "Apache-2.0",
        "long conversations with shared prefixes, one hour",
        spread=True,
    ),
    "mooncake-synthetic": Trace(
        3_993,
        "mooncake_synthetic_trace.jsonl",
        f"{_MOONCAKE}FAST25-release/traces/synthetic_trace.jsonl",
        "bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
        "Qin et al. (2025)",
        "Apache-2.0",
        "long documents and chat with shared prefixes",
        spread=False,
    ),
    "sharegpt-300": Trace(
        300,
        "sharegpt_300_lengths.csv",
        f"{_SERVING_SIM}sharegpt-llama-3.1-8b-300-sps10.jsonl",
        "05e48b32da530d4a3dd77f3d47c6fe694ac8308d611aa088e38bb10fba2b3b3a",
        "Cho et al. (LLMServingSim)",
        "MIT (repository)",
        "300 ShareGPT requests, about 10 a second",
        digests=("874694a09c91af6736ed6a7e137f57f744051b425c8f1cdb1f576cc96e0de3b0",),
    ),
    "arxiv-summarization": Trace(
        28_257,
        "arxiv_summarization_lengths.csv",
        f"{_VIDUR}processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "9d3580538d915ca75e4aaaa54590b42dbb17abc6d74c8913310cf07c232adcdc",
        "Agrawal et al. (Vidur)",
        "MIT (repository)",
        "summaries of articles, lengths only",
        lengths_only=True,
    ),
}


def find(name: str) -> Path:
    """The file of a trace.

    Raises:
        UnknownNameError: no such trace. UsageError: it is not on this machine; says how to get it or do without.
    """
    trace = _known(name)
    places = [cache_folder()]
    if named := os.environ.get("DISPATCHGYM_DATA"):
        places.insert(0, Path(named) / FAMILY)
    for folder in places:
        for stem in (trace.file, trace.published_file):
            for file in (folder / stem, folder / f"{stem}.gz"):
                if file.is_file():
                    return file
    raise UsageError(
        f"the trace {name} is not on this machine; `dispatchgym data get {name}` downloads it, {name}-twin is a "
        "synthetic workload of its shape, and DISPATCHGYM_DATA may name a folder with llm/"
        f"{trace.file}.gz"
    )


def is_here(name: str) -> bool:
    """Whether `find` would find it."""
    try:
        return find(name).is_file()
    except UsageError:
        return False


def load(name: str, *, rate_per_s: float | None = None, seed: int = 0) -> Workload:
    """The requests of a trace.

    Args:
        rate_per_s: Poisson arrivals at this rate, for a trace of lengths alone [1].
        seed: of what is drawn: such arrivals, and the spread of rounded times.

    Raises:
        UnknownNameError, UsageError: as `find`. InvalidInstanceError: the file is not the published one.
    """
    file, trace = find(name), _known(name)
    content = _content(file)
    _check(content, trace, str(file))
    if trace.lengths_only and rate_per_s is None:
        rate_per_s = 1.0
    return replace(files.read(file, rate_per_s=rate_per_s, seed=seed, spread=trace.spread), name=name)


def published(name: str) -> tuple[str, bytes]:
    """File name and content of a trace: from this machine if it is here, else downloaded and kept in the cache.

    Raises:
        UnknownNameError: no such trace. UsageError: the network said no. InvalidInstanceError: other content.
    """
    trace = _known(name)
    try:
        file = find(name)
    except UsageError:
        content = _download(name, trace)
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{trace.published_file}-{os.getpid()}"
        part.write_bytes(content)
        part.replace(folder / trace.published_file)
        return trace.published_file, content
    content = _content(file)
    _check(content, trace, str(file))
    return file.name.removesuffix(".gz"), content


def _download(name: str, trace: Trace) -> bytes:
    try:
        with urllib.request.urlopen(trace.url, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read(LARGEST_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(
            f"{name} cannot be downloaded from {trace.url} ({error}); put the file into llm/ of DISPATCHGYM_DATA, or "
            f"use {name}-twin"
        ) from error
    _check(content, trace, trace.url)
    return content


def cache_folder() -> Path:
    """Where downloads are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "dispatchgym" / FAMILY


def _known(name: str) -> Trace:
    if name not in TRACES:
        raise unknown_name("trace", name, TRACES)
    return TRACES[name]


def _content(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInstanceError(f"{file} is no whole gzip file ({error}); get it again") from error


def _check(content: bytes, trace: Trace, place: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest not in (trace.sha256, *trace.digests):
        raise InvalidInstanceError(
            f"{place} is not the published trace (sha256 {digest[:12]}, not {trace.sha256[:12]}); "
            "give it as a file of your own, or get the published one"
        )
