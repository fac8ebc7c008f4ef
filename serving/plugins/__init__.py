"""Policies inside engines that people already run."""
