"""Comparisons of losses: plan, screening, runs on this machine or elsewhere, table and report."""
