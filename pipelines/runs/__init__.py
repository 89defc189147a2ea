"""What a comparison's folder holds: the plan, the status of its runs, and their results."""
