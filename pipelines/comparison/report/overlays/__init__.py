"""Pictures of single cases: reference against prediction, a loss's worst, median and best, and all losses on one case.

`choice` says which cases, `view` which plane, slice and section of them, `reading` reads each file once, `outline`
finds the outlines, `drawing` draws, and `every` does all of it.
"""
