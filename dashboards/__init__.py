"""Dashboards as code: what a tracker shows of a run, built and checked without an account."""
