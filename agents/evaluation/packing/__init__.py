"""Packing as a family of problems: its suites, policies, judge and evidence."""
