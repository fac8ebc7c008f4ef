"""Named sets of packing problems, and people's own clusters as one more."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dispatchgym.agents.evaluation.packing.problem import PackingProblem, World, world_of
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing import files, openb, twin
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.packing.hard_seeds import hard_instances

Cell = tuple[int, int, int, float]
"""Nodes, pods a node, priorities, usage."""

PRIORITY_MATTERS = "packing/priority-matters"

FIRST_SEED = 2**32
"""Of the tested instances; what trains draws seeds below 2**31."""

NODES, PODS_A_NODE, PRIORITIES, USAGES = (8, 16, 32, 64), (4, 8), (1, 2, 4), (0.90, 0.95, 1.00, 1.05)
A_FEW, SOME, MANY = 2, 5, 20
"""Instances a cell: of all sizes, of one size, of one cell."""

MOST_NODES, MOST_PODS_A_NODE, MOST_PRIORITIES = 512, 32, 16

PRIORITY_POLICIES = "kube-scheduler,most-allocated,best-fit,ffd,kube-scheduler+repair50ms,cp-sat@1s"
GPU_POLICIES = "best-fit,random,dot-product,gpu-clustering,gpu-packing,fgd"
LIFETIME_POLICIES = "kube-scheduler,best-fit,fgd"
OWN_POLICIES = "kube-scheduler,most-allocated,best-fit,fgd"


@dataclass(frozen=True, slots=True)
class PackingSuite:
    """A named set of problems and how it is run unless told otherwise.

    Args:
        name: as typed.
        summary: one line for `--list`.
        build: the problems, in a fixed order.
        policies: what runs when no policy is named.
        seeds: how many when not said; one where instances are what is drawn.
    """

    name: str
    summary: str
    build: Callable[[], Iterable[PackingProblem]]
    policies: str
    seeds: int = 1


def suite(name: str) -> PackingSuite:
    """The suite called `name`; cells of Priority Matters are made on the spot.

    Raises:
        UnknownNameError: with the closest names.
        UsageError: a cell that cannot be.
    """
    if name in SUITES:
        return SUITES[name]
    if name.startswith(f"{PRIORITY_MATTERS}-"):
        return _cells_by_name(name)
    raise unknown_name("suite", name, [*SUITES, *(form for form, _ in MADE)])


def own_clusters(pattern: str) -> PackingSuite:
    """The .json files of a folder or of a glob pattern, or a folder with a list of nodes and lists of pods (.csv).

    Raises:
        UsageError: nothing to read. InvalidInstanceError: naming the file.
    """
    folder = Path(pattern)
    found = folder.iterdir() if folder.is_dir() else [folder] if folder.is_file() else map(Path, glob.glob(pattern))
    paths = sorted(path for path in found if path.is_file())
    instances = [files.read(path) for path in paths if path.suffix == ".json"]
    lists = [path for path in paths if path.suffix == ".csv"]
    if lists:
        nodes = [path for path in lists if "node" in path.stem]
        if len(nodes) != 1 or len(lists) < 2:
            raise UsageError(
                f"{pattern} has {len(lists)} .csv files of which {len(nodes)} are called ...node...; it must have one "
                "list of nodes and at least one of pods"
            )
        instances += [files.read_lists(nodes[0], path) for path in lists if path != nodes[0]]
    if not instances:
        raise UsageError(f"no cluster at {pattern}; give a folder with .json files or with lists as .csv")
    names = [instance.name for instance in instances]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two clusters at {pattern} are called {twice[0]!r}; rename one")
    return PackingSuite(
        "instances",
        pattern,
        lambda: [PackingProblem("instances", each.size, each, world_of(each)) for each in instances],
        OWN_POLICIES,
    )


def _cells_by_name(name: str) -> PackingSuite:
    found = re.fullmatch(r"(\d+)x(\d+)(?:-p(\d+))?(?:-u(\d\.\d+))?", name.removeprefix(f"{PRIORITY_MATTERS}-"))
    numbers = [int(text) for text in found.groups()[:3] if text] if found else []
    most = (MOST_NODES, MOST_PODS_A_NODE, MOST_PRIORITIES)
    usage = float(found[4]) if found and found[4] else 1.0
    if not found or any(not 1 <= value <= top for value, top in zip(numbers, most, strict=False)) or usage < 0.5:
        raise UsageError(
            f"suite {name}: write {PRIORITY_MATTERS}-NODESxPODS, such as {PRIORITY_MATTERS}-32x8, and behind it -p4 "
            f"for the priorities and -u0.95 for the usage; at most {MOST_NODES} nodes with {MOST_PODS_A_NODE} pods each"
        )
    priorities = (int(found[3]),) if found[3] else PRIORITIES
    usages = (usage,) if found[4] else USAGES
    cells = list(itertools.product((int(found[1]),), (int(found[2]),), priorities, usages))
    count = MANY if len(cells) == 1 else SOME
    return _priority_matters(name, f"{count} hard instances of each of {len(cells)} cells", cells, count)


def _priority_matters(name: str, summary: str, cells: Sequence[Cell], count: int) -> PackingSuite:
    """Groups are sizes, unless the suite is of one size."""
    sizes = {cell[:2] for cell in cells}

    def group(cell: Cell) -> str:
        size = f"{cell[0]}x{cell[1]}"
        return size if len(sizes) > 1 else f"{size} p{cell[2]} u{cell[3]:.2f}"

    def build() -> Iterable[PackingProblem]:
        for cell in cells:
            for k, instance in enumerate(hard_instances(*cell, count, FIRST_SEED)):
                label = f"{cell[0]}x{cell[1]}-p{cell[2]}-u{cell[3]:.2f}-{k:02d}"
                yield PackingProblem(name, group(cell), replace(instance, name=label), "pods")

    return PackingSuite(name, summary, build, PRIORITY_POLICIES)


def _seeded(
    name: str, summary: str, world: World, groups: Sequence[str], load: Callable[[str, int], PackingInstance]
) -> PackingSuite:
    """A problem for each group and each of the published seeds."""

    def build() -> Iterable[PackingProblem]:
        for group in groups:
            for seed in openb.SEEDS:
                yield PackingProblem(name, group, load(group, seed), world)

    return PackingSuite(name, summary, build, GPU_POLICIES if world == "gpus" else LIFETIME_POLICIES)


def _twin(group: str, seed: int) -> PackingInstance:
    return twin.load(FIRST_SEED + seed)


def _twin_over_time(group: str, seed: int) -> PackingInstance:
    pods, workloads = twin.pods(FIRST_SEED + seed)
    created = twin.creation_times(FIRST_SEED + seed, len(pods))
    name = f"twin-lifetimes-seed{seed}"
    return openb.over_time(twin.nodes(), pods, workloads, created, seed, name=name)


MADE = (
    (
        f"{PRIORITY_MATTERS}-NODESxPODS[-p4][-u0.95]",
        f"one size, {SOME} instances a cell, or with both one cell, {MANY} instances",
    ),
)

_PROTOCOL = "openb (Weng et al. 2023): pods arrive until they ask for 130 % of the GPUs, seeds 42..51"

SUITES: dict[str, PackingSuite] = {
    each.name: each
    for each in (
        _priority_matters(
            "packing/smoke",
            "two small cells of Priority Matters: seconds",
            [(4, 4, 4, 0.95), (8, 4, 2, 0.95)],
            A_FEW,
        ),
        _priority_matters(
            PRIORITY_MATTERS,
            f"Priority Matters (arXiv 2511.08373): 8-64 nodes, usage 0.95, {A_FEW} hard instances a cell: minutes",
            list(itertools.product(NODES, PODS_A_NODE, PRIORITIES, (0.95,))),
            A_FEW,
        ),
        _priority_matters(
            f"{PRIORITY_MATTERS}-tight",
            f"the same at usage 1.00 and 1.05, where not everything fits, {A_FEW} instances a cell",
            list(itertools.product(NODES, PODS_A_NODE, PRIORITIES, (1.00, 1.05))),
            A_FEW,
        ),
        _priority_matters(
            f"{PRIORITY_MATTERS}-grid",
            f"the same at usage 0.90-1.05, {SOME} instances a cell",
            list(itertools.product(NODES, PODS_A_NODE, PRIORITIES, USAGES)),
            SOME,
        ),
        _seeded(
            "packing/openb", f"{_PROTOCOL}; five lists of pods", "gpus", [f"openb-{w}" for w in openb.WORKLOADS],
            lambda group, seed: openb.load(group.removeprefix("openb-"), seed),
        ),
        *(
            _seeded(
                f"packing/openb-{workload}", f"the same with the list {workload}", "gpus", [f"openb-{workload}"],
                lambda group, seed: openb.load(group.removeprefix("openb-"), seed),
            )
            for workload in openb.WORKLOADS
        ),
        _seeded(
            "packing/openb-twin", "the same with synthetic twins, which need no data", "gpus", ["openb-twin"], _twin
        ),
        _seeded(
            "packing/openb-lifetimes", "a tenth of openb; pods leave when they did: allocation and waiting over time",
            "lifetimes", ["openb-lifetimes"], lambda group, seed: openb.load_over_time(seed=seed),
        ),
        _seeded(
            "packing/twin-lifetimes", "the same with synthetic twins, which need no data", "lifetimes",
            ["twin-lifetimes"], _twin_over_time,
        ),
    )
}  # fmt: skip
