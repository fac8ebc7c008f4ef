"""Schedulers of an LLM engine, one file each."""
