"""What people would use instead of learning: dispatch rules and exact solvers."""
