"""Our hooks on the queue policy and the hook registry of SGLang 0.5.23; stand-ins for the rest, which wants a GPU."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

try:
    VERSION = importlib.metadata.version("sglang")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("SGLang is not installed here; `make test-sglang` runs this", allow_module_level=True)

from dispatchgym.serving.plugins import sglang as plugin
from tests.serving.plugins.test_sglang import CACHE, Req

POLICY, REGISTRY = "sglang.srt.managers.schedule_policy", "sglang.srt.plugins.hook_registry"


class _StandIn(types.ModuleType):
    """A module that has whatever is asked for: a class where the name begins like one's, else a mock."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {}) if name[:1].isupper() else MagicMock(name=name)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Two of SGLang's files as they are; stand-ins for the rest."""

    def __init__(self) -> None:
        files = {str(file): Path(str(file.locate())) for file in importlib.metadata.files("sglang") or ()}
        self.own = {name: files[f"{name.replace('.', '/')}.py"] for name in (POLICY, REGISTRY)}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "sglang":
            return None
        if name in self.own:
            return importlib.util.spec_from_file_location(name, self.own[name])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


@pytest.fixture
def policy_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    finder = _Finder()
    for name in [each for each in sys.modules if each.partition(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, name)
    sys.meta_path.insert(0, finder)
    yield importlib.import_module(POLICY)
    sys.meta_path.remove(finder)
    for name in [each for each in sys.modules if each.partition(".")[0] == "sglang"]:
        del sys.modules[name]


def test_what_the_hooks_are_around_has_the_shape_they_rely_on(policy_module: Any) -> None:
    calc, add = policy_module.SchedulePolicy.calc_priority, policy_module.PrefillAdder.add_one_req
    assert list(inspect.signature(calc).parameters)[:3] == ["self", "waiting_queue", "running_batch"]
    assert list(inspect.signature(add).parameters)[:2] == ["self", "req"]
    assert {"CONTINUE", "NO_TOKEN", "OTHER"} <= set(policy_module.AddReqResult.__members__)
    own = inspect.getsource(policy_module.SchedulePolicy.__init__)
    assert all(f"self.{name} =" in own for name in ("tree_cache", "enable_priority_scheduling"))


def test_sglangs_source_still_sets_and_uses_what_the_plug_in_reads() -> None:
    files = {str(file): Path(str(file.locate())) for file in importlib.metadata.files("sglang") or ()}
    batch = files["sglang/srt/managers/schedule_batch.py"].read_text(encoding="utf-8")
    for name in ("rid", "origin_input_ids", "output_ids", "sampling_params", "priority", "retraction_count",
                 "num_matched_prefix_tokens"):  # fmt: skip
        assert f"self.{name} =" in batch or f"self.{name}:" in batch, name
    assert "def finished(self)" in batch
    assert "custom_params" in files["sglang/srt/sampling/sampling_params.py"].read_text(encoding="utf-8")
    scheduler = files["sglang/srt/managers/scheduler.py"].read_text(encoding="utf-8")
    asks = scheduler.index("self.policy.calc_priority(")
    admits = scheduler.index("for req in self.waiting_queue:", asks)
    assert scheduler.index("adder.add_one_req(", admits) > admits  # ordered first, then admitted in that order
    assert scheduler.index("if res != AddReqResult.CONTINUE:", admits) < scheduler.index("def ", admits)


def test_the_registered_hooks_order_and_hold(policy_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module(REGISTRY).HookRegistry
    sys.modules["sglang.srt.runtime_context"].get_parallel.return_value.tp_size = 1  # type: ignore[attr-defined]
    monkeypatch.setenv("DISPATCHGYM_POLICY", "edf")
    plugin.register()
    stock = policy_module.PrefillAdder.add_one_req
    registry.apply_hooks()
    assert policy_module.PrefillAdder.add_one_req is not stock
    cache = MagicMock(**vars(CACHE))
    cache.supports_fast_match_prefix.return_value = False
    policy_module.RadixCache.create_simulated = MagicMock()
    policy = policy_module.SchedulePolicy("fcfs", cache, False, False, False)
    queue = [Req("late", 50, extra={"ttft_slo_ms": 9000}), Req("soon", 50, extra={"ttft_slo_ms": 100})]
    for _ in range(3):  # what is compiled or loaded at the first decision may make that one late
        policy.calc_priority(queue, types.SimpleNamespace(reqs=[]), processed_tokens=0)
    assert [r.rid for r in queue] == ["soon", "late"]
    full = types.SimpleNamespace(reqs=[Req(f"r{k}", 40, 3) for k in range(plugin.MOST_RUNNING)])
    policy.calc_priority(queue, full, processed_tokens=0)  # no place is free: the rule lets nobody in
    held = policy_module.PrefillAdder.add_one_req(MagicMock(), queue[0], False, None)
    assert held is policy_module.AddReqResult.OTHER


def test_this_is_the_version_that_the_plug_in_is_for() -> None:
    assert plugin.require_sglang(VERSION) is None
