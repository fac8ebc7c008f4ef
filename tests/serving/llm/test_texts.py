"""Tokens to text, piece by piece; stop strings; hashes of blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.llm.texts import Language, StopScan, TextStream, block_hashes
from dispatchgym.serving.wire import RequestError
from tests.serving.llm.live import language, write_tokenizer


@given(text=st.text(max_size=40), data=st.data())
def test_pieces_of_any_text_add_up_to_it(text: str, data: st.DataObject) -> None:
    ids = list(text.encode("utf-8"))
    stream, told = TextStream(language()), ""
    while ids:
        size = data.draw(st.integers(1, 5))
        told += stream.push(ids[:size])
        assert text.startswith(told)  # half a character is never told
        del ids[:size]
    assert told + stream.flush() == text


def test_bytes_that_never_become_a_character_are_told_all_the_same() -> None:
    stream = TextStream(language())
    told = "".join(stream.push([0xFF]) for _ in range(20)) + stream.flush()
    assert told == "\ufffd" * 20


@given(
    text=st.text("ab", max_size=30), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_a_stop_string_is_found_wherever_pieces_are_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    scan, told, rest = StopScan(stops), "", text
    while rest:
        size = data.draw(st.integers(1, 4))
        told += scan.push(rest[:size])
        rest = rest[size:]
    told += scan.push("", last=True)
    # A piece may end before a second stop string is there that would begin earlier: whoever is complete first counts.
    firsts = [(text.index(stop) + len(stop), stop) for stop in stops if stop in text]
    assert scan.has_hit == bool(firsts)
    if not firsts:
        assert told == text
    else:
        assert any(text.startswith(told + stop) for stop in stops)
        assert not any(stop in told for stop in stops)


@pytest.mark.parametrize("tidies", [False, True])
@pytest.mark.parametrize("kind", ["BPE", "WordPiece"])
def test_decoding_says_what_the_tokenizers_own_says(tmp_path: Path, kind: str, tidies: bool) -> None:
    words = {word: i for i, word in enumerate(["[UNK]", "it", "is", "n't", "so", ",", ".", "##ly", "</s>"])}
    model = models.BPE(vocab=words, merges=[]) if kind == "BPE" else models.WordPiece(words, unk_token="[UNK]")
    backend = Tokenizer(model)
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(["</s>"])
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=tidies
    )
    made.save_pretrained(tmp_path)
    found = Language(tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, len(words), 12).tolist()
        assert found.decode(ids) == made.decode(ids, skip_special_tokens=True)


def test_special_tokens_and_the_end_are_not_told() -> None:
    assert language().decode([104, 256, 105, 257]) == "hi"
    assert language().piece(256) == "<end>"
    assert language().ends == {256}


def test_a_folder_without_a_tokenizer_and_one_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer can be loaded"):
        Language(tmp_path)
    silent = Language(write_tokenizer(tmp_path, template=None))
    with pytest.raises(RequestError, match="no chat template"):
        silent.encode_chat([{"role": "user", "content": "x"}])


def test_hashes_name_a_block_and_all_before_it() -> None:
    one = np.arange(50, dtype=np.int32)
    other = one.copy()
    other[20] = 7
    a, b = (block_hashes(ids, 16, b"secret")[0] for ids in (one, other))
    assert len(a) == 3  # the rest of two tokens is no whole block
    assert (a == b).tolist() == [True, False, False]
    assert len(set(a.tolist())) == 3
    assert not np.any(block_hashes(one, 16, b"another")[0] == a)
