"""The job-shop world: classic, blocking and interrupting shops."""
