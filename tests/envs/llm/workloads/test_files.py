"""Readers of trace files: what they take, what they mend, what they refuse and where they say it stands."""

from __future__ import annotations

import contextlib
import gzip
import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchgym.envs.api import DispatchGymError, InvalidInstanceError, UsageError
from dispatchgym.envs.llm.workloads import files

OWN = """arrival_s,prompt_tokens,output_tokens,tenant,class,ttft_slo_s,max_new_tokens,prefix_hashes
100.5,40,3,a,chat,0.5,8,7 8
101.0,33,1,b,batch,,,7 9
101.0,5,2,a,chat,2,2,
"""


def written(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def refusal(tmp_path: Path, text: str, name: str = "trace.csv") -> str:
    with pytest.raises(InvalidInstanceError) as error:
        files.read(written(tmp_path, text, name))
    return str(error.value)


def test_own_columns_become_a_workload(tmp_path: Path) -> None:
    w = files.read(written(tmp_path, OWN))
    assert w.name == "trace"
    assert w.arrival_s.tolist() == [0.0, 0.5, 0.5]
    assert w.prompt_tokens.tolist() == [40, 33, 5]
    assert w.output_tokens.tolist() == [3, 1, 2]
    assert w.max_new_tokens.tolist() == [8, 4, 2]  # blank: the power of two that holds the longest output
    assert w.ttft_slo_s.tolist() == [0.5, np.inf, 2.0]
    assert w.tenant.tolist() == [0, 1, 0]
    assert [w.class_names[k] for k in w.class_id] == ["chat", "batch", "chat"]
    # Two whole blocks of 16 tokens in each of the first two prompts; hash 7 is shared.
    assert w.hash_ptr.tolist() == [0, 2, 4, 4]
    assert w.hashes[0] == w.hashes[2]
    assert len(set(w.hashes.tolist())) == 3


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.jsonl.gz", "t.json.gz"])
def test_json_says_the_same_as_csv(tmp_path: Path, name: str) -> None:
    rows = [
        {"arrival_s": 3, "prompt_tokens": 20, "output_tokens": 2, "prefix_hashes": ["x"]},
        {"arrival_s": 3.25, "prompt_tokens": 18.0, "output_tokens": 5, "prefix_hashes": ["x"], "priority": 2},
    ]
    text = json.dumps(rows) if ".json." in f"{name}." else "\n".join(map(json.dumps, rows))
    file = tmp_path / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    w = files.read(file)
    assert w.arrival_s.tolist() == [0.0, 0.25]
    assert w.prompt_tokens.tolist() == [20, 18]
    assert w.priority.tolist() == [0, 2]
    assert w.hashes.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        ("nan,5,5", "arrival_s", "'nan'"),
        ("inf,5,5", "arrival_s", "'inf'"),
        ("soon,5,5", "arrival_s", "'soon'"),
        (",5,5", "arrival_s", "''"),
        ("2,-3,5", "prompt_tokens", "'-3'"),
        ("2,0,5", "prompt_tokens", "'0'"),
        ("2,5,0", "output_tokens", "'0'"),
        ("2,5.5,5", "prompt_tokens", "'5.5'"),
        ("2,5,99999999999", "output_tokens", "'99999999999'"),
        ("2,5,1e400", "output_tokens", "'1e400'"),
        ("1e12,5,5", "arrival_s", "'1e12'"),
    ],
)
def test_what_cannot_be_a_request_is_refused_with_line_and_column(
    tmp_path: Path, row: str, column: str, value: str
) -> None:
    message = refusal(tmp_path, f"arrival_s,prompt_tokens,output_tokens\n1,5,5\n\n{row}\n")
    assert f"line 4, column {column}: {value}" in message


def test_other_columns_are_held_to_account_too(tmp_path: Path) -> None:
    head = "arrival_s,prompt_tokens,output_tokens,"
    assert "column ttft_slo_s: '-1'" in refusal(tmp_path, f"{head}ttft_slo_s\n0,5,5,-1\n")
    assert "column max_new_tokens: '4' is below the 5 output" in refusal(tmp_path, f"{head}max_new_tokens\n0,5,5,4\n")
    assert "has 2 hashes; 5 tokens are 1 of 16" in refusal(tmp_path, f"{head}prefix_hashes\n0,5,5,1 2\n")
    blocks = f"{head}prefix_hashes,hash_block\n0,5,5,,16\n1,5,5,,32\n"
    assert "line 3, column hash_block: '32' differs from the 16 above" in refusal(tmp_path, blocks)


def test_a_missing_column_is_named_beside_those_there(tmp_path: Path) -> None:
    message = refusal(tmp_path, "arrival_s,prompt_tokens,tokens\n0,5,5\n")
    assert "there is no column 'output_tokens'; it has arrival_s, prompt_tokens, tokens" in message


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n", "t.csv", "no requests"),
        ("", "t.csv", "no requests"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2\n", "t.csv", "line 2: 2 values for 3 columns"),
        ("arrival_s,arrival_s\n1,2\n", "t.csv", "column 'arrival_s' twice"),
        ('{"a": 1}\n{', "t.jsonl", "line 2: is not JSON"),
        ("[1]", "t.json", "line 1: is no object"),
        ('{"a": 1}', "t.json", "holds no list"),
        ("[" * 100_000, "t.json", "t.json"),
        ("arrival_s\0\n1", "t.csv", "there is no column"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, name: str, says: str) -> None:
    assert says in refusal(tmp_path, text, name)


def test_broken_bytes_are_refused(tmp_path: Path) -> None:
    for name, content in (
        ("a.csv", b"\xff\xfe\x00"),
        ("b.csv.gz", b"arrival_s"),
        ("c.csv.gz", gzip.compress(b"x" * 99)[:-9]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInstanceError, match=name):
            files.read(tmp_path / name)
    with pytest.raises(UsageError, match=r"must end in \.csv"):
        files.read(written(tmp_path, "", "trace.txt"))


def test_requests_out_of_order_are_sorted_with_a_warning(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,tenant\n5,1,1,a\n3,2,1,b\n9,3,1,c\n3,4,1,d\n"
    with pytest.warns(files.TraceWarning, match=r"not in order of arrival \(line 3\); sorted"):
        w = files.read(written(tmp_path, text))
    assert w.arrival_s.tolist() == [0.0, 0.0, 2.0, 6.0]
    assert w.prompt_tokens.tolist() == [2, 4, 1, 3]  # equal times keep the file's order
    assert w.tenant.tolist() == [1, 3, 0, 2]


def test_public_layouts_are_known_by_their_columns(tmp_path: Path) -> None:
    azure = "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n"
    w = files.read(written(tmp_path, f"TIMESTAMP,ContextTokens,GeneratedTokens\r\n{azure}"))
    assert w.arrival_s.tolist() == pytest.approx([0, 4.314579])
    mooncake = '{"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}'
    w = files.read(written(tmp_path, f"{mooncake}\n{mooncake.replace('1000', '1500')}", "m.jsonl"))
    assert (w.arrival_s.tolist(), w.hash_block, w.hash_ptr.tolist()) == ([0.0, 0.5], 512, [0, 2, 4])
    bailian = (
        '{"chat_id": 3, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 40, "output_length": 132, '
        '"type": "text", "turn": 1, "hash_ids": [1089, 1090, 1091]}'
    )
    w = files.read(written(tmp_path, bailian, "b.jsonl"))
    assert (w.class_names, w.hash_block, w.session.tolist(), len(w.hashes)) == (("text",), 16, [0], 2)
    nanoseconds = "arrival_time_ns,input_toks,output_toks\n1700000000046926808,5,5\n1700000000347938951,6,6\n"
    assert files.read(written(tmp_path, nanoseconds)).arrival_s[1] == pytest.approx(0.301012143, abs=1e-6)


def test_lengths_without_arrivals_need_a_rate_and_others_refuse_one(tmp_path: Path) -> None:
    lengths = written(tmp_path, "num_prefill_tokens,num_decode_tokens\n" + "30,4\n" * 400)
    with pytest.raises(UsageError, match="give a rate"):
        files.read(lengths)
    w = files.read(lengths, rate_per_s=2.0, seed=3)
    assert w.arrival_s[-1] == pytest.approx(200, rel=0.15)
    assert (files.read(lengths, rate_per_s=2.0, seed=3).arrival_s == w.arrival_s).all()
    with pytest.raises(UsageError, match="arrival times of its own"):
        files.read(written(tmp_path, OWN, "own.csv"), rate_per_s=1.0)


def test_rounded_times_are_spread_until_the_next(tmp_path: Path) -> None:
    rows = [f"{3 * k},10,1" for k in range(12) for _ in range(40)]
    file = written(tmp_path, "\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    with pytest.warns(files.TraceWarning, match="480 requests share 12 times"):
        w = files.read(file, seed=1)
    assert len(np.unique(w.arrival_s)) == 480
    assert (np.histogram(w.arrival_s + 1e-12, bins=12, range=(0, 36))[0] >= 38).all()
    assert files.read(file, spread=False).arrival_s.tolist() == np.repeat(3.0 * np.arange(12), 40).tolist()


def test_an_offline_batch_stays_one(tmp_path: Path) -> None:
    file = written(tmp_path, "arrival_s,prompt_tokens,output_tokens\n" + "0,10,1\n" * 50)
    assert (files.read(file).arrival_s == 0).all()


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.integers(1, 99),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(0, 9), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
COLUMNS = (*files.OWN.needed, *files.OWN.optional, *(n for each in files.LAYOUTS for n in each.needed.values()))


@given(rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), ANYTHING, max_size=8), max_size=6), data=st.data())
def test_whatever_stands_in_a_file_it_is_a_workload_or_refused(
    rows: list[dict[str, object]], data: st.DataObject
) -> None:
    usable = {"arrival_s": st.integers(0, 9), "prompt_tokens": st.integers(1, 99), "output_tokens": st.integers(1, 9)}
    for row in rows:
        if data.draw(st.booleans()):
            row |= {name: data.draw(values) for name, values in usable.items()}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", files.TraceWarning)
        file = Path(folder, "trace.jsonl")
        file.write_text("\n".join(map(json.dumps, rows)))
        with contextlib.suppress(DispatchGymError):
            assert len(files.read(file)) == len(rows)


@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)), head=st.booleans())
@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "t.csv.gz"])
def test_no_bytes_break_a_reader(name: str, content: bytes, head: bool) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes((b"arrival_s,prompt_tokens,output_tokens\n" if head else b"") + content)
        with contextlib.suppress(DispatchGymError):
            files.read(file)
