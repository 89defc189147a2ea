"""Region-based losses: functions of a few sums an item and class."""
