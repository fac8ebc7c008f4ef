"""Policies inside engines and routers that people already run."""
