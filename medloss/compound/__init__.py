"""Compound losses: sums of a distribution-based and a region-based loss, and sums of any losses."""
