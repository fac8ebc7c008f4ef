"""What runs for real: executors, servers and plug-ins."""
