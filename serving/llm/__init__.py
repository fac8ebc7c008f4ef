"""A live LLM server whose scheduler is any policy of the gym."""
