"""The second scheduler's way to ask the placement advisor."""

from __future__ import annotations

from dispatchgym.serving.kube.advisor import PlacementAdvisor
from dispatchgym.serving.kube.facts import PodFacts
from dispatchgym.serving.kube.scheduler import Choice


class PolicyAdvisor:
    """Takes the advisor's best node."""

    def __init__(self, advisor: PlacementAdvisor) -> None:
        self._advisor = advisor

    def choose(self, pod: PodFacts) -> Choice:
        advice = self._advisor.advise(pod)
        by = self._advisor.policy.name if advice.source == "policy" else f"least-allocated, policy {advice.cause}"
        return Choice(advice.best, advice.failed, advice.waits, by)

    def fits(self, pod: PodFacts, node: str) -> bool:
        """All filters let the pod go there now."""
        return bool(self._advisor.filters.check(pod, [node]).nodes)
