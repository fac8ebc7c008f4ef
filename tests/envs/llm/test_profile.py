"""Profiles: files that hold none, steps that are captured, engines that are slower throughout."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.llm.calibrate import StepCost, predict
from dispatchgym.envs.llm.profile import Captured, Decoding, Profile, load_profile, profile_names
from tests.envs.llm.helpers import PROFILE

CAPTURED = replace(
    PROFILE,
    lead_s=1e-3,
    decoding=Decoding(4e-4, 3e-4, 2e-6, 1e-6, 8e-9, 1e-6),
    captured=Captured((16, 48), base_s=2e-3, weights_s=1e-3, token_s=5e-5, lead_s=5e-4),
)


@pytest.mark.parametrize("profile", [*map(load_profile, profile_names()), CAPTURED], ids=lambda p: p.name)
def test_a_profile_comes_back_from_its_file(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"format": 1, "note": "by a test", **asdict(profile)}))
    assert load_profile(file) == profile
    assert profile.scaled(1.0) == profile


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"lead": 1.0}, "unknown key 'lead'"),
        ({"format": 2}, "not of format 1"),
        ({"name": ...}, "'name'"),
        ({"base_s": -1.0}, "base_s -1.0 is not a time >= 0"),
        ({"kv_tokens": 0}, "kv_tokens 0 is not above 0"),
        ({"graph_sizes": [4, 2]}, "graph_sizes must rise"),
        ({"decoding": {"base_s": 1.0}}, "missing 5 required"),
        ({"captured": {"sizes": [8], "base_s": 1.0}}, "missing 2 required"),
        ({"captured": {**asdict(CAPTURED.captured), "lead_s": -1.0}}, "captured.lead_s -1.0 is not a time"),  # type: ignore[arg-type]
        ({"captured": {**asdict(CAPTURED.captured), "sizes": []}}, "0 sizes, not 1 to 64"),  # type: ignore[arg-type]
        ({"captured": {**asdict(CAPTURED.captured), "sizes": [0, 8]}}, "captured.sizes must rise"),  # type: ignore[arg-type]
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_file_without_a_profile_is_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    data = {"format": 1, **asdict(CAPTURED), "name": "mine", **change}
    file.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))
    with pytest.raises(InvalidInstanceError, match="mine") as refused:
        load_profile(file)
    assert why in str(refused.value)


def test_what_a_step_runs() -> None:
    assert [CAPTURED.of_pass(n)[1] for n in (1, 16, 17, 48, 49)] == [16, 16, 48, 48, 49]
    assert CAPTURED.of_pass(48)[0] is CAPTURED.captured
    assert CAPTURED.of_pass(49)[0] is CAPTURED
    assert PROFILE.of_pass(1) == (PROFILE, 1)


def test_a_slower_engine_takes_longer_for_every_step() -> None:
    steps = [
        StepCost(4, 0, 4, 0, 0, 300, 1.0),
        StepCost(4, 0, 12, 0, 0, 300, 1.0),
        StepCost(4, 2, 4, 30, 900, 300, 1.0, plain_before_s=1.0),
        StepCost(0, 1, 0, 900, 900, 0, 1.0),
    ]
    assert predict(CAPTURED.scaled(3.0), steps) == pytest.approx(3 * predict(CAPTURED, steps))
    assert CAPTURED.scaled(3.0).swap_bytes_per_s == CAPTURED.swap_bytes_per_s
