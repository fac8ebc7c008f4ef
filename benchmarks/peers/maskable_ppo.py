"""sb3-contrib's MaskablePPO on our padded environment; run by the Python of an environment that holds both.

First line of standard input: the request as JSON. Every further line asks for one measurement, which is one line of
JSON: decisions, CPU and wall seconds of a rollout and its update. Called by training.py.
"""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from sb3_contrib import MaskablePPO  # noqa: E402
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402
from torch import nn  # noqa: E402

import dispatchgym  # noqa: E402, F401 (registers the environments)

PER_CANDIDATE = 8  # numbers a candidate's node hands to the action head


class LastMask(gymnasium.Wrapper):
    """Hands the mask of the last observation to MaskablePPO."""

    def action_masks(self):
        return self.mask

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.mask = obs["action_mask"].astype(bool)
        return obs, info

    def step(self, action):
        obs, *rest = self.env.step(action)
        self.mask = obs["action_mask"].astype(bool)
        return obs, *rest


class GraphIsomorphismExtractor(BaseFeaturesExtractor):
    """A round: sums along all links, both ways, and a two-layer perceptron; padded, as the observation is.

    `typed`: messages pass a matrix of their link and way, as in networks that tell links apart; else all are alike.
    """

    def __init__(self, observation_space, nodes, links, candidate, width, rounds, typed):
        actions = observation_space["candidate"].shape[0]
        super().__init__(observation_space, actions * PER_CANDIDATE + width)
        self.names = nodes
        self.links = links
        self.typed = typed
        rows = [observation_space[name].shape[0] for name in nodes]
        self.first = dict(zip(nodes, np.cumsum([0, *rows[:-1]]).tolist(), strict=True))
        self.candidate = candidate
        self.embed = nn.ModuleDict({name: nn.Linear(observation_space[name].shape[1], width) for name in nodes})
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for _ in range(rounds)
        )
        if typed:
            ways = [f"{way} {link}" for link, _, _ in links for way in ("to", "from")]
            self.message = nn.ModuleList(
                nn.ModuleDict({way: nn.Linear(width, width, bias=False) for way in ways}) for _ in range(rounds)
            )
        self.out = nn.Linear(width, PER_CANDIDATE)

    def forward(self, obs):
        h = torch.cat([self.embed[name](obs[name]) for name in self.names], 1)  # (batch, rows of all types, width)
        batch, rows, width = h.shape
        shift = torch.arange(batch)[:, None] * rows
        ends = {}
        for name, source, target in self.links:
            goal = obs[name].long()
            kept = (goal >= 0).flatten()
            start = (torch.arange(goal.shape[1]).expand_as(goal) + self.first[source] + shift).flatten()[kept]
            ends[name] = start, (goal + self.first[target] + shift).flatten()[kept]
        h = h.reshape(batch * rows, width)
        heard_from = torch.cat([end for pair in ends.values() for end in pair])
        hears = torch.cat([end for pair in ends.values() for end in pair[::-1]])
        for k, mix in enumerate(self.mix):
            heard = h
            if self.typed:
                for name, (start, end) in ends.items():
                    heard = heard.index_add(0, end, self.message[k][f"to {name}"](h.index_select(0, start)))
                    heard = heard.index_add(0, start, self.message[k][f"from {name}"](h.index_select(0, end)))
            else:
                heard = heard.index_add(0, hears, h.index_select(0, heard_from))
            h = mix(heard)
        h = h.view(batch, rows, width)
        mine = self.first[self.candidate] + obs["candidate"].long().clamp(min=0)
        candidates = self.out(h.gather(1, mine[:, :, None].expand(-1, -1, width)))
        return torch.cat((candidates.flatten(1), h.mean(1)), 1)


def build(request):
    def make():
        env = gymnasium.make(
            request["env"], instance=request["instance"], graph=request["graph"], disable_env_checker=True
        )
        return LastMask(env)

    env = DummyVecEnv([make] * request["envs"])
    spec = env.envs[0].unwrapped.graph_spec
    return MaskablePPO(
        "MultiInputPolicy",
        env,
        n_steps=request["steps"],
        batch_size=request["minibatch"],
        n_epochs=request["epochs"],
        gamma=1.0,
        gae_lambda=0.98,
        policy_kwargs={
            "features_extractor_class": GraphIsomorphismExtractor,
            "features_extractor_kwargs": {
                "nodes": [node.name for node in spec.nodes],
                "links": [(link.name, link.source, link.target) for link in spec.links],
                "candidate": spec.candidate,
                "width": request["width"],
                "rounds": request["rounds"],
                "typed": request["typed"],
            },
            "net_arch": [request["width"]],
        },
        seed=0,
        device="cpu",
    )


def main():
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    build({**request, "steps": 4}).learn(4 * request["envs"])  # compiles the environment's kernels
    model = build(request)
    print(json.dumps({"ready": sum(p.numel() for p in model.policy.parameters())}), flush=True)
    per_update = request["envs"] * request["steps"]
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        model.learn(per_update, reset_num_timesteps=False)
        used = {"decisions": per_update, "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        print(json.dumps(used), flush=True)


if __name__ == "__main__":
    main()
