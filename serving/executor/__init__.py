"""Runs an engine's batches on a real model: on a GPU, or on the CPU with a small one."""
