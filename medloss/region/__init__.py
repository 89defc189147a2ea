"""Region-based losses: functions of a few sums per item and class."""
