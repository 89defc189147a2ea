"""Comparisons of losses: which runs there are, who trains them, and the table at the end."""
