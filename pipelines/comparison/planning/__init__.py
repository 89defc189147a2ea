"""What a comparison will cost and can show, before it is trained: dry runs, budgets of time, halving."""
