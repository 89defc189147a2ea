"""Predictions that others made, brought to the report of a comparison: measured against references, without training.

`methods` says what was named (a folder, nnU-Net's results, a table), `references` which label map each prediction
belongs to, `classes` what is measured, `measure` measures in several processes and keeps it in `cache`, and `collect`
makes of it what a report is made of.

Nothing is imported here: the processes that measure do not wait for torch.
"""
