"""LLM serving: requests, the engine that runs them under any scheduler, executors, and what came out of a run."""
