"""What a problem is: instances, dynamics, observations, metrics and drawing. Never imports torch."""
