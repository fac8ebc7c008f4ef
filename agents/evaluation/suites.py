"""Named sets of problems, and people's own instance files as one more."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from dispatchgym.agents.evaluation.problem import Problem, Reference, ReferenceKind, derived_seed, with_shutdowns
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop import generate, library, text
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.envs.registry import unknown_name

STANDARD_PROBABILITIES = (0.0, 0.05, 0.1, 0.2)
"""The grid of shutdown probabilities that interrupting suites run over."""

RANDOM_INSTANCES = 20
"""Instances of a `jobshop/random-SIZE` suite."""

MOST_RANDOM_OPS = 20_000
"""Largest random instance: jobs x machines."""

KINDS: tuple[ReferenceKind, ...] = get_args(ReferenceKind)

FT06_AND_LA = ("ft06", "la01", "la02", "la03", "la04", "la05")
# The first is the base of the paired differences: a strong rule, so that beating it means something.
CLASSIC_RULES = "lrpt,fdd/mwkr,mwkr,mor,fifo,spt,random"
BLOCKING_RULES = "mwkr+cap=tuned,mwkr+cap0.7,mwkr,lrpt,spt,random"


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of problems and how it is run unless told otherwise.

    Args:
        name: as typed.
        summary: one line for `--list`.
        variants: the shops it runs in; `--variant` replaces them, except where there are several.
        build: the problems of one variant, references not yet filled in.
        policies: what runs when no policy is named.
        seeds: how many when not said; five is the least that an interval should rest on.
        probabilities: shutdown probabilities of the interrupting shop.
    """

    name: str
    summary: str
    variants: tuple[Variant, ...]
    build: Callable[[Variant], list[Problem]]
    policies: str
    seeds: int = 5
    probabilities: tuple[float, ...] = STANDARD_PROBABILITIES

    def problems(
        self,
        variant: Variant | None = None,
        probabilities: tuple[float, ...] | None = None,
        on_interrupt: OnInterrupt = "resume",
    ) -> list[Problem]:
        """Every problem of the suite, in a fixed order, with the references that are known.

        Raises:
            UsageError: a variant for a suite that runs in several shops, or a probability out of range.
        """
        if variant is not None and len(self.variants) > 1:
            raise UsageError(f"suite {self.name} runs in {', '.join(self.variants)}; leave --variant out")
        grid = self.probabilities if probabilities is None else probabilities
        if bad := [p for p in grid if not 0 <= p < 1]:
            raise UsageError(f"shutdown probability {bad[0]:g} is not in [0, 1)")
        return [
            each
            for shop in (self.variants if variant is None else (variant,))
            for problem in self.build(shop)
            for each in with_shutdowns(_with_reference(problem), grid, on_interrupt)
        ]


def suite(name: str) -> Suite:
    """The suite called `name`; `jobshop/random-JOBSxMACHINES` is made on the spot.

    Raises:
        UnknownNameError: with the closest names.
        UsageError: a random size that cannot be.
    """
    if name in SUITES:
        return SUITES[name]
    if name.startswith("jobshop/random-"):
        size = re.fullmatch(r"(\d{1,4})x(\d{1,4})", name.removeprefix("jobshop/random-"))
        jobs, machines = (int(size[1]), int(size[2])) if size else (0, 0)
        if not 0 < jobs * machines <= MOST_RANDOM_OPS:
            raise UsageError(
                f"suite {name}: the size must be JOBSxMACHINES, such as jobshop/random-10x5, "
                f"with at most {MOST_RANDOM_OPS} operations"
            )
        return Suite(
            name,
            f"{RANDOM_INSTANCES} random instances of {jobs} jobs on {machines} machines",
            ("jssp",),
            lambda shop: _of(name, shop, [_random(jobs, machines, k) for k in range(RANDOM_INSTANCES)]),
            CLASSIC_RULES,
        )
    raise unknown_name("suite", name, [*SUITES, "jobshop/random-SIZE"])


def own_instances(pattern: str) -> Suite:
    """The instance files of a folder (its *.txt files) or of a glob pattern, as a suite.

    Raises:
        UsageError: nothing matches, or two files have the same name.
        InvalidInstanceError: a malformed file, by file and line.
    """
    folder = Path(pattern)
    found = folder.glob("*.txt") if folder.is_dir() else [folder] if folder.is_file() else map(Path, glob.glob(pattern))
    paths = sorted(path for path in found if path.is_file())
    if not paths:
        raise UsageError(
            f"no instance file at {pattern}; give a folder of .txt files or a quoted pattern such as 'shop/*.jsp'"
        )
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise UsageError(f"{other} and {path} would both be called {path.stem!r}; rename one")
    instances = [replace(text.read(path), name=name) for name, path in sorted(by_name.items())]
    return Suite("instances", pattern, ("jssp",), lambda shop: _of("instances", shop, instances), CLASSIC_RULES)


def read_references(path: Path) -> dict[str, Reference]:
    """Instance name -> reference, from a JSON object of numbers or {value, kind} objects.

    A bare number is a best-known value: nothing is claimed of it.

    Raises:
        UsageError: the file or an entry cannot be; names the file and the entry.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read references {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"references {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f'references {path} must be an object such as {{"la01": 666}}')
    references = {}
    for name, entry in content.items():
        value, said = (entry.get("value"), entry.get("kind")) if isinstance(entry, dict) else (entry, "best-known")
        kind = next((known for known in KINDS if known == said), None)
        if type(value) is not int or value <= 0 or kind is None:
            raise UsageError(
                f"references {path}: {name!r} is {json.dumps(entry)}; it must be a whole number above 0 or "
                f'{{"value": ..., "kind": {" | ".join(KINDS)}}}'
            )
        references[name] = Reference(value, kind)
    return references


def with_references(problems: Iterable[Problem], references: dict[str, Reference], path: Path) -> list[Problem]:
    """`problems` with the given references in place of the known ones; they do not cover shutdowns.

    Raises:
        UsageError: no name in the file is one of the problems'.
    """
    listed = list(problems)
    names = {problem.instance.name for problem in listed}
    if not names & references.keys():
        raise UsageError(
            f"references {path} names none of the instances {', '.join(sorted(names)[:5])} ...; check them"
        )
    return [
        replace(problem, reference=references[problem.instance.name])
        if problem.instance.name in references and not problem.has_shutdowns
        else problem
        for problem in listed
    ]


def _with_reference(problem: Problem) -> Problem:
    name = problem.instance.name
    if name not in library.names() or library.load(name).digest != problem.instance.digest:
        return problem  # somebody's own file that only shares the name
    # Without shutdowns the interrupting shop is the blocking shop with swaps.
    known = library.best_known(name, "bws" if problem.variant == "isbjssp" else problem.variant)
    return problem if known is None else replace(problem, reference=Reference(known.value, known.kind))


def _of(name: str, variant: Variant, instances: Iterable[Instance]) -> list[Problem]:
    return [Problem(name, instance.size, instance, variant) for instance in instances]


def _library(name: str, variant: Variant, instances: Iterable[str]) -> list[Problem]:
    return _of(name, variant, [library.load(each) for each in instances])


def _random(jobs: int, machines: int, k: int) -> Instance:
    name = f"random-{jobs}x{machines}-{k:02d}"
    rng = np.random.default_rng(derived_seed("instance", name))
    return replace(generate.random_instance(rng, jobs, machines), name=name)


def _classics(variant: Variant) -> list[Problem]:
    names = sorted(name for name in library.names() if not name.startswith("ta"))
    return [
        replace(p, group=p.instance.name.rstrip("0123456789")) for p in _library("jobshop/classics", variant, names)
    ]


def _demo(variant: Variant) -> list[Problem]:
    return _library("demo", variant, (*FT06_AND_LA, *(_numbered("ta", 1, 5) if variant == "jssp" else ())))


def _numbered(stem: str, first: int, last: int) -> list[str]:
    return [f"{stem}{k:02d}" for k in range(first, last + 1)]


SUITES: dict[str, Suite] = {
    each.name: each
    for each in (
        Suite(
            "demo",
            "ft06 and la01-05 in the classic, the blocking and the interrupting shop; ta01-05 in the classic shop",
            ("jssp", "bws", "isbjssp"),
            _demo,
            "lrpt,mwkr+cap=tuned,spt,random,sampled:mwkr@64,pilot,learned,learned+lookahead,"
            "cp-sat@2d+hint:lrpt,rolling@0.2d,clairvoyant@3d",
            seeds=2,
            probabilities=(0.1,),
        ),
        Suite(
            "jobshop/smoke",
            "ft06, la01 and la06: seconds",
            ("jssp",),
            lambda shop: _library("jobshop/smoke", shop, ("ft06", "la01", "la06")),
            "lrpt,mwkr,spt,cp-sat@2d",
            seeds=1,
        ),
        Suite(
            "jobshop/taillard",
            "ta01-ta80, ten of each size from 15x15 to 100x20",
            ("jssp",),
            lambda shop: _library("jobshop/taillard", shop, _numbered("ta", 1, 80)),
            CLASSIC_RULES,
        ),
        Suite(
            "jobshop/lawrence",
            "la01-la40, five of each size from 10x5 to 15x15",
            ("jssp",),
            lambda shop: _library("jobshop/lawrence", shop, _numbered("la", 1, 40)),
            CLASSIC_RULES,
        ),
        Suite(
            "jobshop/classics", "the 82 small classics: abz, ft, la, orb, swv, yn", ("jssp",), _classics, CLASSIC_RULES
        ),
        Suite(
            "blocking/lawrence",
            "la01-la40 without buffers, swaps allowed (--variant bns: not allowed)",
            ("bws",),
            lambda shop: _library("blocking/lawrence", shop, _numbered("la", 1, 40)),
            BLOCKING_RULES,
        ),
        Suite(
            "interrupting/lawrence",
            "la01-la40 without buffers, machines break down with probability 0, 0.05, 0.1, 0.2",
            ("isbjssp",),
            lambda shop: _library("interrupting/lawrence", shop, _numbered("la", 1, 40)),
            BLOCKING_RULES,
        ),
    )
}
