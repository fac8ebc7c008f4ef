"""The training configuration: YAML, overrides, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dispatchgym.agents.training.config import TrainConfig, describe, dump, load
from dispatchgym.envs.api import UnknownNameError, UsageError

FOLDER = Path(__file__).parents[3] / "configs" / "jobshop"


def test_a_dump_loads_to_the_same_configuration(tmp_path: Path) -> None:
    config = load(FOLDER / "blocking.yaml", ["ppo.entropy=0.5", "instances.sizes=[[3, 4]]"])
    assert config.ppo.entropy == 0.5
    assert config.instances.sizes == ((3, 4),)
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load(path) == config


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load(path).name == path.stem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.entrpy=1", "did you mean 'ppo.entropy'"),
        ("sead=1", "did you mean 'seed'"),
        ("policy.encoder.widht=3", "did you mean 'policy.encoder.width'"),
    ],
)
def test_an_unknown_key_offers_the_closest(override: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        load(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=one", "seed is 'one'; it must be int"),
        ("shop.variant=bw", "shop.variant is 'bw'; it must be one of"),
        ("ppo=3", "ppo is 3; it must be a mapping"),
        ("instances.sizes=[[3]]", r"instances.sizes\[0\] is \[3\]; it must be a list of 2"),
        ("policy.encoder.hubs=1", "must be bool"),
        ("ppo.clip=-1", "ppo.clip is -1"),
        ("ppo.target_kl=-1", "ppo.target_kl is -1"),
        ("ppo.share=0", "ppo.share is 0"),
        ("ppo.advantage=gae", "need a critic"),
        ("iterations=0", "at least 1"),
        ("ema=1", "ema is 1"),
        ("nothing", "has no '='"),
        ("seed.x=1", "did you mean|must be"),
    ],
)
def test_wrong_values_name_the_key(override: str, message: str) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=message):
        load(None, [override])


def test_numbers_may_be_written_with_an_exponent() -> None:
    assert load(None, ["ppo.learning_rate=1e-3"]).ppo.learning_rate == 1e-3


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UsageError, match="mapping of keys"):
        load(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="is not YAML"):
        load(tmp_path / "broken.yaml")


def test_help_names_every_key() -> None:
    lines = describe()
    assert "ppo.entropy=0.002" in lines
    document = yaml.safe_load(dump(TrainConfig()))
    assert {line.split("=")[0].split(".")[0] for line in lines} == set(document) - {"schema"}
