"""Speed of other people's job-shop environments; run by the Python of an environment that holds them.

Prints one JSON object: name -> steps per second of CPU time of each repeat. Called by jobshop_env.py.
"""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import gymnasium  # noqa: E402
import JSSEnv  # noqa: E402, F401 (registers its environment)
import numpy as np  # noqa: E402
from job_shop_lib import JobShopInstance, Operation  # noqa: E402
from job_shop_lib.dispatching import DispatcherObserverConfig  # noqa: E402
from job_shop_lib.dispatching.feature_observers import FeatureObserverType  # noqa: E402
from job_shop_lib.graphs import build_resource_task_graph  # noqa: E402
from job_shop_lib.reinforcement_learning import SingleJobShopGraphEnv  # noqa: E402


def jssenv(routes, episodes):
    text = f"{len(routes)} {len(routes[0])}\n" + "\n".join(" ".join(f"{m} {d}" for m, d in route) for route in routes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instance"
        path.write_text(text + "\n")
        env = gymnasium.make("jss-v1", env_config={"instance_path": str(path)}, disable_env_checker=True).unwrapped
        rng = np.random.default_rng(0)
        return [steps / used for steps, used in (jssenv_episode(env, rng) for _ in range(episodes + 1))][1:]


def jssenv_episode(env, rng):
    before, steps, done = time.process_time(), 0, False
    obs = env.reset()
    obs = obs[0] if isinstance(obs, tuple) else obs
    while not done:
        legal = np.flatnonzero(obs["action_mask"])
        obs, _, done, *_ = env.step(int(legal[rng.integers(len(legal))]))
        steps += 1
    return steps, time.process_time() - before


def job_shop_lib(routes, episodes, limit):
    instance = JobShopInstance([[Operation(m, d) for m, d in route] for route in routes], name="peer")
    env = SingleJobShopGraphEnv(
        build_resource_task_graph(instance),
        feature_observer_configs=[
            DispatcherObserverConfig(FeatureObserverType.IS_READY),
            DispatcherObserverConfig(FeatureObserverType.DURATION),
        ],
    )
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(episodes + 1):
        before, steps, done = time.process_time(), 0, False
        env.reset()
        while not done and steps < limit:
            available = env.dispatcher.available_operations()
            chosen = available[int(rng.integers(len(available)))]
            _, _, done, *_ = env.step((chosen.job_id, chosen.machines[0]))
            steps += 1
        rates.append(steps / (time.process_time() - before))
    return rates[1:]


def main():
    request = json.load(sys.stdin)
    result = {}
    for size, routes in request["instances"].items():
        result[f"JSSEnv {size}"] = jssenv(routes, request["episodes"])
        result[f"job-shop-lib graph env {size}"] = job_shop_lib(routes, request["episodes"], request["limit"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
