"""Speed of the simulator Vidur on requests given as JSON; run by the Python of an environment that holds what it needs.

Usage: llm_simulator.py CHECKOUT REQUESTS.json REPEATS, where CHECKOUT holds its source (github.com/microsoft/vidur, git
7d47513) and REQUESTS {"arrival_s", "prompt_tokens", "output_tokens", "step", "chunk", "places"}: "step" has the
coefficients of our step times in seconds. Its own operator profiles are large files that copies of its source often
lack, so that its tables of operator times are filled from these; looking times up, its scheduler and its events are its
own, metrics off.

Prints one JSON object: "iterations" and "requests" per second of CPU time of each repeat, and "steps" of a run.
"""

import atexit
import csv
import json
import logging
import sys
import tempfile
import time
import types
from pathlib import Path

sys.path.insert(0, sys.argv[1])
for reporting in ("wandb", "plotly_express"):  # imported by its metrics, which are off
    sys.modules[reporting] = types.ModuleType(reporting)

from vidur.config import (  # noqa: E402
    ClusterConfig,
    MetricsConfig,
    RandomForrestExecutionTimePredictorConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
    TraceRequestGeneratorConfig,
)
from vidur.entities import Replica  # noqa: E402
from vidur.events.batch_end_event import BatchEndEvent  # noqa: E402
from vidur.execution_time_predictor import ExecutionTimePredictorRegistry  # noqa: E402
from vidur.execution_time_predictor.sklearn_execution_time_predictor import (  # noqa: E402
    SklearnExecutionTimePredictor,
)
from vidur.simulator import Simulator  # noqa: E402
from vidur.types import ExecutionTimePredictorType  # noqa: E402

LONGEST = 4096  # tokens of a request, Vidur's own limit for this model
WRITES = ("write_metrics", "write_json_trace", "enable_chrome_trace", "save_table_to_wandb")
STORES = (
    "store_plots", "store_operation_metrics", "store_token_completion_metrics", "store_request_metrics",
    "store_batch_metrics", "store_utilization_metrics", "keep_individual_batch_metrics",
)  # fmt: skip
TABLES = (
    "attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "input_layernorm",
    "post_attention_layernorm", "attn_rope", "attn_kv_cache_save", "add",
)  # fmt: skip


class Table(dict):
    """Milliseconds of a layer by key, worked out when first asked for."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def __missing__(self, key):
        self[key] = found = self.made(*key)
        return found


class Given(SklearnExecutionTimePredictor):
    """Vidur's predictor with tables from coefficients instead of random forests."""

    step = None  # set below: coefficients in seconds

    def _train_models(self):
        return {}

    def _get_grid_search_params(self):
        return {}

    def _get_estimator(self):
        return None

    def _predict_from_models(self):
        c, layer_ms = self.step, 1000.0 / self._model_config.num_layers
        tables = {name: Table(lambda tokens: 0.0) for name in TABLES}
        tables["mlp_up_proj"] = Table(
            lambda tokens: layer_ms * (c["base_s"] + max(c["weights_s"], c["token_s"] * tokens))
        )
        tables["attn_prefill"] = Table(lambda kv, squared: layer_ms * c["pair_s"] * (kv * squared**0.5 + squared / 2))
        tables["attn_decode"] = Table(lambda batch, kv: layer_ms * c["context_s"] * batch * kv)
        return tables


def main():
    given = json.loads(Path(sys.argv[2]).read_text())
    Given.step = given["step"]
    ExecutionTimePredictorRegistry.unregister(ExecutionTimePredictorType.RANDOM_FORREST)
    ExecutionTimePredictorRegistry.register(ExecutionTimePredictorType.RANDOM_FORREST, Given)
    logging.disable(logging.INFO)
    steps = [0]
    handle = BatchEndEvent.handle_event

    def counted(self, *arguments):
        steps[0] += 1
        return handle(self, *arguments)

    BatchEndEvent.handle_event = counted
    found = {"iterations": [], "requests": []}
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.csv"
        with trace.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("arrived_at", "num_prefill_tokens", "num_decode_tokens"))
            rows.writerows(zip(given["arrival_s"], given["prompt_tokens"], given["output_tokens"], strict=True))
        for _ in range(int(sys.argv[3]) + 1):
            Replica._id = -1  # it numbers them through a process, and looks them up from 0
            simulator = Simulator(config(folder, trace, given))
            atexit.unregister(simulator._write_output)
            steps[0], before = 0, time.process_time()
            simulator.run()
            used = time.process_time() - before
            found["iterations"].append(steps[0] / used)
            found["requests"].append(len(given["arrival_s"]) / used)
    print(json.dumps({name: values[1:] for name, values in found.items()} | {"steps": steps[0]}))


def config(folder, trace, given):
    off = dict.fromkeys((*WRITES, *STORES), False)
    return SimulationConfig(
        log_level="warning",
        cluster_config=ClusterConfig(
            num_replicas=1,
            replica_config=ReplicaConfig(model_name="meta-llama/Meta-Llama-3-8B", device="a100"),
            replica_scheduler_config=SarathiSchedulerConfig(batch_size_cap=given["places"], chunk_size=given["chunk"]),
        ),
        request_generator_config=TraceRequestGeneratorConfig(trace_file=str(trace), max_tokens=LONGEST),
        execution_time_predictor_config=RandomForrestExecutionTimePredictorConfig(),
        metrics_config=MetricsConfig(output_dir=folder, cache_dir=folder, **off),
    )


if __name__ == "__main__":
    main()
