"""Recording what is launched on a GPU as CUDA graphs, which launch the same again at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

Body = Callable[[], None]
Record = Callable[[Body], Body]
"""From what launches something to what launches the same again."""


def recorder(device: torch.device) -> Record:
    """Records graphs, in one memory pool: at most one of them may run at a time."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    first: list[torch.cuda.CUDAGraph] = []

    def record(body: Body) -> Body:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            body()  # kernels are compiled and libraries set up outside of the recording
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            pool = first[0].pool() if first else None
            # other threads may ask for events meanwhile, as those of collectives do
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                body()
            graph.replay()  # the first time takes longer
            stream.synchronize()
        first.append(graph)
        return graph.replay

    return record
