"""Which loss is best, and is the difference real: statistics on a plain table of results."""
