"""`dispatchgym simulate`: one workload under several schedulers of an LLM engine, and which to take."""
