"""Kubernetes: the scheduler extender and the second scheduler."""
