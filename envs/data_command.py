"""`dispatchgym data`: list the published instances and request traces, write them or random instances as files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop import library, text
from dispatchgym.envs.jobshop.generate import Routing, random_instance
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.envs.llm.workloads import traces
from dispatchgym.envs.packing import openb
from dispatchgym.envs.registry import unknown_name


@dataclass(frozen=True, slots=True)
class ListCommand:
    """List the published instances: size, best-known makespans, where they come from, and a checksum.

    Example: dispatchgym data list --family la
    """

    family: str | None = None
    """Only this family: ft, la, abz, orb, swv, yn or ta; openb, the GPU cluster; or llm, the request traces."""


@dataclass(frozen=True, slots=True)
class GetCommand:
    """Write published instances as text files, NAME.txt, in the standard format; and request traces as published.

    Instances are not downloaded: the numbers come with dispatchgym or are rebuilt from published seeds. Traces are, if
    neither the folder llm/ of DISPATCHGYM_DATA nor the cache has them; the cache keeps them for `dispatchgym simulate`.

    Example: dispatchgym data get ft06 la --out instances
    Example: dispatchgym data get azure-2023-conv --out traces
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
    """Instances such as ft06, whole families such as la, traces such as azure-2023-conv, or llm for all of them."""

    out: Path = Path("instances")
    """Folder to write to; made if it is not there."""

    force: bool = False
    """Replace files that are there already and differ."""


@dataclass(frozen=True, slots=True)
class MakeCommand:
    """Write random instances as text files in the standard format.

    Instance number K of a seed is the same however many are made.

    Example: dispatchgym data make --jobs 20 --machines 10 --count 5 --load 0.8 --out shop
    """

    jobs: int
    """Jobs of each instance."""

    machines: int
    """Machines of each instance."""

    count: int = 1
    """How many instances."""

    seed: int = 0
    """Whole number that all instances follow from."""

    durations: tuple[int, int] = (1, 99)
    """Least and largest duration."""

    operations: tuple[int, int] | None = None
    """Fewest and most operations of a job; default: as many as machines."""

    routing: Routing = "free"
    """Order of a job's machines: any; the same for all; or the lower half before the upper."""

    reentrant: bool = False
    """Let jobs come back to a machine."""

    release_spread: float = 0.0
    """Spread releases over this share of the mean work of a machine."""

    load: float | None = None
    """Let jobs arrive during the run, keeping machines busy this share of the time; default: all at the start."""

    out: Path = Path("instances")
    """Folder to write to; made if it is not there."""

    force: bool = False
    """Replace files that are there already and differ."""


Command = (
    Annotated[ListCommand, tyro.conf.subcommand("list")]
    | Annotated[GetCommand, tyro.conf.subcommand("get")]
    | Annotated[MakeCommand, tyro.conf.subcommand("make")]
)


def main(argv: list[str]) -> int:
    """Run `dispatchgym data` with the given arguments and return 0.

    Raises:
        DispatchGymError: an unknown name, arguments or a folder that cannot be; nothing was written then.
        OSError: the file system refused.
    """
    command: ListCommand | GetCommand | MakeCommand = tyro.cli(
        Command,
        args=argv,
        prog="dispatchgym data",
        description="List the published instances and request traces, write them or random instances as files.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 240  # nothing is cut off in a file
    if isinstance(command, ListCommand):
        _print_list(command, out)
        return 0
    with _room_in(command.out) as part:
        files = _published(command.names) if isinstance(command, GetCommand) else _random(command)
        _write(files, part, command.out, command.force)
    noun = "instance" if all(name.endswith(".txt") for name in files) else "file"
    out.print(f"{len(files)} {noun}{'s' * (len(files) != 1)} in {command.out}", markup=False, soft_wrap=True)
    return 0


def _print_list(command: ListCommand, out: Console) -> None:
    if command.family not in (openb.FAMILY, traces.FAMILY):
        _print_shops(command.family, out)
    if command.family in (None, openb.FAMILY):
        _print_clusters(out)
    if command.family in (None, traces.FAMILY):
        _print_traces(out)


def _print_traces(out: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "requests", "here"):
        table.add_column(column, justify="right" if column == "requests" else "left", no_wrap=True)
    for column in ("what", "published by", "licence of the numbers", "sha256"):
        table.add_column(column, no_wrap=True)
    for name, trace in traces.TRACES.items():
        is_here = "yes" if traces.is_here(name) else "-"
        table.add_row(name, str(trace.requests), is_here, trace.about, trace.source, trace.licence, trace.sha256[:12])
    out.print()
    out.print(table)
    out.print(
        "\nRequest traces of LLM services, for `dispatchgym simulate`. They are looked for in the folder llm/ of\n"
        "DISPATCHGYM_DATA and in the cache; `dispatchgym data get NAME` downloads one. NAME-twin is a synthetic\n"
        "workload of its shape that needs no file.",
        markup=False,
    )


def _print_clusters(out: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "nodes", "pods", "GPUs", "GPUs asked for"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for column in ("published by", "licence of the numbers"):
        table.add_column(column, no_wrap=True)
    for name, size in openb.sizes().items():
        table.add_row(f"{openb.FAMILY}-{name}", *size, openb.SOURCE, openb.LICENCE)
    out.print()
    out.print(table)
    out.print(
        "\nPod lists of the openb cluster. They are read from the folder kubernetes/ of DISPATCHGYM_DATA and not\n"
        "downloaded; - where they are not there. dispatchgym.envs.packing.twin draws synthetic clusters like it.",
        markup=False,
    )


def _print_shops(family: str | None, out: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "jobs", "machines", "classic", "blocking, swaps", "blocking, no swaps"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for column in ("published by", "licence of the numbers", "sha256"):
        table.add_column(column, no_wrap=True)
    for name in library.names(family):
        instance, origin = library.load(name), library.family_of(name)
        known = (_best_known(name, variant) for variant in ("jssp", "bws", "bns"))
        size = str(instance.num_jobs), str(instance.num_machines)
        table.add_row(name, *size, *known, origin.source, origin.licence, instance.digest[:12])
    out.print(table)
    out.print(
        "\nMakespans: proven optima, or best proven lower bound .. best known; - where nothing is published.\n"
        "Bounds of the classic shop from ScheduleOpt/benchmarks (CC BY-SA 4.0), of the blocking shop with swaps from\n"
        "ScheduleOpt/optalcp-benchmarks (MIT; open ones are the best of two 30-minute runs), without swaps our own.",
        markup=False,
    )


def _best_known(name: str, variant: Variant) -> str:
    reference = library.best_known(name, variant)
    if reference is None:
        return "-"
    return str(reference.value) if reference.kind == "optimum" else f"{reference.bound} .. {reference.value}"


def _published(names: tuple[str, ...]) -> dict[str, bytes]:
    """File name -> content of the instances, families and traces of these names."""
    if not names:
        raise UsageError("name at least one instance or family; `dispatchgym data list` shows them")
    chosen: list[str] = []
    wanted: list[str] = []
    for name in names:
        if name in library.FAMILIES:
            chosen += library.names(name)
        elif name in library.names():
            chosen.append(name)
        elif name == traces.FAMILY:
            wanted += traces.TRACES
        elif name in traces.TRACES:
            wanted.append(name)
        else:
            known = (*library.FAMILIES, *library.names(), traces.FAMILY, *traces.TRACES)
            raise unknown_name("instance or family", name, known)
    shops = {f"{name}.txt": text.render(library.load(name)).encode() for name in chosen}
    return shops | dict(traces.published(name) for name in wanted)


def _random(command: MakeCommand) -> dict[str, bytes]:
    """File name -> content of the random instances asked for."""
    if command.count < 1:
        raise UsageError(f"--count is {command.count}; it must be at least 1")
    if command.seed < 0:
        raise UsageError(f"--seed is {command.seed}; it must be a whole number >= 0")
    files = {}
    for number, stream in enumerate(np.random.SeedSequence(command.seed).spawn(command.count)):
        name = f"random-{command.jobs}x{command.machines}-seed{command.seed}-{number:03}"
        instance = random_instance(
            np.random.default_rng(stream),
            command.jobs,
            command.machines,
            durations=command.durations,
            operations=command.operations,
            routing=command.routing,
            reentrant=command.reentrant,
            release_spread=command.release_spread,
            load=command.load,
            name=name,
        )
        files[f"{name}.txt"] = text.render(instance).encode()
    return files


@contextmanager
def _room_in(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for files in the making; made before the work, so that a refusal comes early."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".part-") as part:
            yield Path(part)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written to ({error.strerror}); name another folder") from error


def _write(files: Mapping[str, bytes], part: Path, folder: Path, force: bool) -> None:
    """Write all files, or none if one of them cannot be: each is complete in `part` before the first moves."""
    for name, content in files.items():
        (part / name).write_bytes(content)
        old = folder / name
        if not force and old.exists() and old.read_bytes() != content:
            raise UsageError(f"{old} is there already and differs; add --force to replace it")
    for name in files:
        os.replace(part / name, folder / name)
