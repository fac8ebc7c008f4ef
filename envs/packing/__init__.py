"""Pod packing: clusters and pods, the dynamics, observations, the validator, generators and readers."""
