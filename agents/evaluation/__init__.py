"""Holding every policy to account: suites, runs that survive interruption, statistics, and the report."""
