"""Nothing is trained or chosen on an instance that policies are tested on."""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.agents.graph_vec_env import GraphVecEnv, RolloutConfig
from dispatchgym.agents.shop_world import InstanceSource, ShopExam, ShopWorld, Stage
from dispatchgym.agents.training.config import TrainConfig, load
from dispatchgym.agents.training.validation import Validation
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop import library
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.instance import Instance

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "configs" / "jobshop").glob("*.yaml"))
ROLLOUTS = 22  # of every recipe: more than a thousand instances each


def without_order(instance: Instance) -> str:
    """A digest that does not see the order of the jobs."""
    pairs = np.stack((instance.machine, instance.duration), axis=1).astype(np.int64)
    jobs = sorted(part.tobytes() for part in np.split(pairs, instance.job_ptr[1:-1]))
    return hashlib.sha256(b"|".join(jobs)).hexdigest()


def published(instances: Iterable[Instance]) -> list[str]:
    """Names of the published instances that are among these, jobs in any order."""
    known = {without_order(library.load(name)): name for name in library.names()}
    return sorted({known[digest] for digest in map(without_order, instances) if digest in known})


def examined(config: TrainConfig) -> list[Instance]:
    """The instances that checkpoints are chosen on."""
    exam = Validation(config).exam
    assert isinstance(exam, ShopExam)
    return exam.instances


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_trains_or_validates_on_a_published_instance(path: Path) -> None:
    config = load(path)
    count = config.rollout.instances
    drawn = [
        instance
        for rollout in range(ROLLOUTS)
        for instance in config.instances.draw(count, (config.seed, 0, rollout), config.shop, rollout)[0]
    ]
    validated = examined(config)
    assert published([*drawn, *validated]) == []
    digests = [without_order(instance) for instance in drawn]
    assert len(set(digests)) == len(digests) >= 500
    assert not set(digests) & {without_order(instance) for instance in validated}


@pytest.mark.parametrize("name", ["ft06", "la17", "abz5", "orb03", "swv20", "yn4", "ta01", "ta80"])
def test_a_published_instance_would_be_noticed(name: str) -> None:
    instance = library.load(name)
    ends = instance.job_ptr.tolist()
    pairs = list(zip(instance.machine.tolist(), instance.duration.tolist(), strict=True))
    routes = [pairs[a:b] for a, b in itertools.pairwise(ends)]
    backwards = Instance.from_routes("mine", routes[::-1], instance.num_machines)
    (fresh,) = InstanceSource(sizes=((15, 15),)).draw(1, (0,), ShopConfig())[0]
    assert published([fresh, backwards]) == [name]
    assert published([fresh]) == []


def test_training_does_not_know_the_published_instances() -> None:
    """No module that a training loads can load one, however indirectly."""
    library_modules = {"dispatchgym.envs.jobshop.library", "dispatchgym.envs.jobshop.taillard"}
    training = [f"dispatchgym.agents.training.{file.stem}" for file in (ROOT / "agents" / "training").glob("*.py")]
    assert "dispatchgym.agents.training.run" in training
    for start in ("dispatchgym.agents.shop_world", "dispatchgym.agents.shop_runs", *training):
        assert not reached(start) & library_modules, start
    assert reached("dispatchgym.agents.evaluation.suites") >= library_modules


def reached(start: str) -> set[str]:
    """Modules of ours that importing `start` can lead to, imports inside functions included."""
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        module = ahead.pop()
        if module in seen:
            continue
        seen.add(module)
        place = ROOT / module.replace(".", "/")
        file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        if file.exists():
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    ahead += [alias.name for alias in node.names if alias.name.startswith("dispatchgym.")]
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dispatchgym"):
                    ahead += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return seen


CURRICULUM = InstanceSource(((6, 4),), curriculum=(Stage(2, ((3, 3),)), Stage(3, ((4, 3), (5, 3)))))


def sizes(instances: Iterable[Instance]) -> list[tuple[int, int]]:
    return [(instance.num_jobs, instance.num_machines) for instance in instances]


def test_a_curriculum_goes_by_the_number_of_the_rollout() -> None:
    env = GraphVecEnv(ShopWorld(ShopConfig(), CURRICULUM), RolloutConfig(2, 2))
    seen = []
    for _ in range(4):
        env.reset()
        problem = env.runs.batches[0].problem
        seen.append({(int(j), int(m)) for j, m in zip(problem.num_jobs, problem.num_machines, strict=True)})
        env.rounds += 1
    assert seen == [{(3, 3)}, {(3, 3)}, {(4, 3), (5, 3)}, {(6, 4)}]
    assert (CURRICULUM.capacity.jobs, CURRICULUM.capacity.machines, CURRICULUM.capacity.ops) == (6, 4, 24)


def test_validation_judges_by_the_last_sizes() -> None:
    config = replace(load(None), instances=CURRICULUM)
    assert set(sizes(examined(config))) == {(6, 4)}


def test_a_curriculum_without_stages_changes_nothing() -> None:
    plain = InstanceSource(((5, 4), (6, 3)))
    drawn = [plain.draw(3, (1, 2), ShopConfig(), rollout)[0] for rollout in (None, 0, 7)]
    assert len({tuple(instance.digest for instance in one) for one in drawn}) == 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{until: 5, sizes: [[3, 3]]}, {until: 5, sizes: [[4, 3]]}]", r"end at \[5, 5\]"),
        ("[{until: 0, sizes: [[3, 3]]}]", r"end at \[0\]"),
        ("[{until: 3, sizes: []}]", "give at least one"),
        ("[{til: 3, sizes: [[3, 3]]}]", "did you mean|until"),
    ],
)
def test_a_wrong_curriculum_is_refused(stages: str, message: str) -> None:
    with pytest.raises((UsageError, KeyError), match=message):
        load(None, [f"instances.curriculum={stages}"])
