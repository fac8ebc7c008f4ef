"""Schedulers of an LLM engine, one file each; `SCHEDULERS` knows them by the names of the command line."""
