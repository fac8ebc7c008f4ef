"""What the page shows: numbers about requests, never their text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.sequences import Sequence

MOST_SHOWN = 60
"""Sequences listed one by one."""


def status(frontend: Frontend) -> dict[str, Any]:
    """The queue, the batch, the pool, the bounds and the scheduler now; sums grow from the server's start."""
    ready, last, metrics = frontend.ready, frontend.last, frontend.metrics
    now = frontend.clock()
    sequences = sorted(frontend.sequences, key=lambda s: (s.state == "queued", s.arrived_s))
    recent = list(metrics.recent)
    decisions_ms = 1e3 * np.array(metrics.decisions_s)

    def policy_ms(share: float) -> float | None:
        """Of the present scheduler's last decisions; None for a rule that runs inside the engine."""
        return float(np.percentile(decisions_ms, share)) if decisions_ms.size else None

    return {
        "at_s": now,
        "is_up": frontend.is_up,
        "failed": frontend.failed,
        "scheduler": ready.scheduler if ready else frontend.recipe.scheduler,
        "version": ready.version if ready else "",
        "is_benched": bool(last and last.is_benched),
        "running": sum(s.state == "running" for s in sequences),
        "waiting": frontend.num_waiting,
        "max_running": ready.max_seqs if ready else None,
        "kv_blocks": ready.kv_blocks if ready else None,
        "kv_used": ready.kv_blocks - last.free_blocks if ready and last else 0,
        "token_budget": ready.token_budget if ready else None,
        "sums": {**metrics.composition, "step_s": metrics.step_seconds},
        "policy_ms": 1e3 * last.policy_s if last else 0.0,
        "policy_p50_ms": policy_ms(50),
        "policy_p99_ms": policy_ms(99),
        "repairs": dict(last.repairs) if last else {},
        "faults": dict(last.faults) if last else {},
        "attainment": sum(recent) / len(recent) if recent else None,
        "attainment_over": len(recent),
        "sequences": [_shown(s, now) for s in sequences[:MOST_SHOWN]],
    }


def _shown(s: Sequence, now: float) -> dict[str, Any]:
    return {
        "key": s.submit.key,
        "tenant": s.tenant,
        "state": s.state,
        "age_s": now - s.arrived_s,
        "prompt": len(s.submit.prompt),
        "generated": s.generated,
        "max_new": s.submit.max_new,
        "priority": s.submit.columns.get("priority", 0),
        "ttft_slo_s": s.ttft_slo_s if math.isfinite(s.ttft_slo_s) else None,
    }
