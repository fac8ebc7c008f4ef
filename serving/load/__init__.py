"""Open-loop traffic for LLM servers, and comparisons under the same traffic."""
