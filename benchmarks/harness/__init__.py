"""What every benchmark shares: repeated timing, the row format, the table."""
