"""Dispatch rules and CP-SAT for the job-shop world."""
