"""calibrate, fidelity and make-model, end to end on the tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dispatchgym.cli import main
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.serving.executor.fidelity import kendall_tau

SMALL = ["--device=cpu", "--max-seqs=8", "--max-len=320", "--token-budget=256", "--kv-blocks=200"]


def test_a_model_is_made_measured_and_foretold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, profile, report = str(tmp_path / "model"), str(tmp_path / "mine.json"), str(tmp_path / "fidelity.json")
    assert main(["make-model", "--out", folder]) == 0
    steps, again = str(tmp_path / "steps.jsonl"), str(tmp_path / "again.json")
    assert main(["calibrate", "--model", folder, "--out", profile, "--quick", "--steps", steps, *SMALL]) == 0
    found = load_profile(profile)
    assert main(["calibrate", "--refit", steps, "--out", again, "--name", "mine"]) == 0
    assert load_profile(again) == found
    assert (found.name, found.source, found.segments, found.kv_tokens) == ("mine", "measured", 4, 3200)
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 32 * 4
    assert found.fit["held_out_steps"] == 10
    assert 0 < found.base_s + found.weights_s < 1
    assert found.swap_bytes_per_s > 0
    traffic = ["--trace", "azure-2023-conv-twin", "--requests", "3", "--schedulers", "vllm,sarathi,sglang"]
    assert main(["fidelity", "--model", folder, "--profile", profile, *traffic, *SMALL, "--json", report]) == 0
    said = capsys.readouterr().out
    assert said.count("equal at every step") == 3
    assert "Kendall tau" in said
    runs = json.loads(Path(report).read_text())["runs"]
    assert [run["scheduler"] for run in runs] == ["vllm", "sarathi", "sglang"]
    assert all(run["faster"]["duration_s"] < run["slower"]["duration_s"] for run in runs)
    assert all(run["same_ledger"] and run["real"]["finished"] == run["simulated"]["finished"] == 3 for run in runs)


def test_what_the_commands_cannot_do_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--model", "random:tiny", "--out", str(tmp_path / "x.txt")]) == 2
    assert "a profile is a .json file" in capsys.readouterr().err
    for both in ([], ["--model", "random:tiny", "--refit", "x"]):
        assert main(["calibrate", *both, "--out", str(tmp_path / "x.json")]) == 2
        assert "--model or --refit" in capsys.readouterr().err
    short = ["calibrate", "--model", "random:tiny", "--device", "cpu", "--kv-blocks", "4", "--out"]
    assert main([*short, str(tmp_path / "x.json")]) == 2
    assert "texts of up to 64 tokens are too short to measure" in capsys.readouterr().err
    assert main([*short[:-1], "--max-len", "40000", "--out", str(tmp_path / "x.json")]) == 2
    assert "max_len 40000 is beyond the 32768 tokens that model tiny reads" in capsys.readouterr().err
    (tmp_path / "steps").write_text('{"seconds": 1}\n')
    for file, why in (("steps", "no steps as `calibrate --steps` writes them"), ("none", "No such file")):
        assert main(["calibrate", "--refit", str(tmp_path / file), "--out", str(tmp_path / "x.json")]) == 2
        assert why in capsys.readouterr().err
    wrong = ["fidelity", "--model", "random:tiny", "--profile", "h200-8b", *SMALL]
    for flags, why in (
        ("--loads=0", "give shares above 0"),
        ("--requests=-2", "--requests is -2"),
        ("--schedulers=,", "name one at least"),
    ):
        assert main([*wrong, flags]) == 2
        assert why in capsys.readouterr().err
    assert main(["make-model", "--out", str(tmp_path / "m"), "--size", "70b"]) == 2
    assert "'70b' is not known" in capsys.readouterr().err


def test_kendalls_tau_counts_pairs() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1.0
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))
    assert math.isnan(kendall_tau([1, 1], [1, 2]))
