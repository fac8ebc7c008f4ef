"""Text to tokens and back: prompts, chat templates, output piece by piece, stop strings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.wire import RequestError

REPLACED = "\ufffd"
"""What stands for bytes that are no character (yet)."""
MOST_HELD = 8
"""Tokens whose text is held back because it may still become a character; one of four bytes needs four at most."""

Message = Mapping[str, Any]


class Language:
    """A model's tokenizer, and the tokens that end its outputs.

    Args:
        folder: of the model.

    Raises:
        UsageError: it holds no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        kind: Any
        if (folder / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast  # loads no torch, unlike the other

            kind = PreTrainedTokenizerFast
        else:
            from transformers import AutoTokenizer

            kind = AutoTokenizer
        try:
            self.tokenizer: Any = kind.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder}: no tokenizer can be loaded: {str(error).splitlines()[0]}") from None
        self._decode = _quick_decoder(self.tokenizer)
        self.vocabulary = len(self.tokenizer)
        self.ends = _end_tokens(folder, self.tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with the model's own beginning."""
        ids: list[int] = self.tokenizer.encode(text)
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation, up to where the assistant's answer begins.

        Raises:
            RequestError: the tokenizer has no chat template, or the template refuses the messages.
        """
        if self.tokenizer.chat_template is None:
            raise RequestError("this model has no chat template; ask /v1/completions")
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            # A template's own refusal names the rule, such as that roles alternate.
            said = str(error) if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise RequestError(f"messages: the model's chat template refuses them: {said[:200]}") from None
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of output tokens."""
        return self._decode(list(ids))

    def piece(self, token: int) -> str:
        """Text of one token alone, special ones included."""
        text: str = self.tokenizer.decode([token])
        return text


def _quick_decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """What `tokenizer.decode` does without special tokens; at once where nothing else is to be done than what the
    library below it does: every output token passes here twice."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tidies = getattr(tokenizer, "clean_up_tokenization_spaces", False) and (
        type(getattr(backend, "model", None)).__name__ != "BPE"
        or getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    )
    if backend is None or tidies:
        return partial(tokenizer.decode, skip_special_tokens=True)
    return partial(backend.decode, skip_special_tokens=True)


def _end_tokens(folder: Path, of_tokenizer: int | None) -> frozenset[int]:
    """Ids that end an output: what the model's own files say, and the tokenizer's."""
    found = set() if of_tokenizer is None else {of_tokenizer}
    for name in ("config.json", "generation_config.json"):
        try:
            given = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError):
            continue
        found |= {int(i) for i in (given if isinstance(given, list) else [given]) if i is not None}
    return frozenset(found)


class TextStream:
    """Text of an output as its tokens come; what may still become a character is held back."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._ids: list[int] = []
        self._begin = 0  # first token that may change the text of those after it
        self._told = 0  # tokens whose text is out

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens add."""
        told = ""
        for token in ids:
            self._ids.append(token)
            told += self._take(force=len(self._ids) - self._told > MOST_HELD)
        return told

    def flush(self) -> str:
        """What was held back."""
        return self._take(force=True)

    def _take(self, *, force: bool) -> str:
        before = self._language.decode(self._ids[self._begin : self._told])
        now = self._language.decode(self._ids[self._begin :])
        if len(now) <= len(before) or (now.endswith(REPLACED) and not force):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return now[len(before) :]


class StopScan:
    """Looks for stop strings in a text that comes in pieces; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.has_hit = False

    def push(self, text: str, *, last: bool = False) -> str:
        """What of the text so far may be told; nothing from the first stop string on."""
        if self.has_hit:
            return ""
        text = self._held + text
        at = min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.has_hit, self._held = True, ""
            return text[:at]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def block_hashes(ids: npt.NDArray[np.int32], block_tokens: int, chain: bytes) -> tuple[npt.NDArray[np.int64], bytes]:
    """A hash for each whole block of a text, of the block and all before it; shape (tokens // block_tokens,).

    Keyed: who does not know the secret that the chain begins with cannot write a prompt that finds the blocks of
    another text. The second result is the chain for what follows the last whole block.
    """
    hashes = np.zeros(len(ids) // block_tokens, np.int64)
    raw = np.ascontiguousarray(ids, np.int32).tobytes()
    width = 4 * block_tokens
    for k in range(len(hashes)):
        chain = hashlib.blake2b(raw[k * width : (k + 1) * width], key=chain, digest_size=32).digest()
        hashes[k] = int.from_bytes(chain[:8], "little", signed=True)
    return hashes, chain
