"""What learns, and how every policy is held to account."""
