"""`EXECUTORS`: every executor by name. A new executor is a new file, and one line here."""

# In the order of the help, not sorted.
# isort: off
from pipelines.comparison.executors.slurm_options import slurm as slurm
from pipelines.comparison.executors.command_lines import command_lines as command_lines

# isort: on
from pipelines.comparison.executors.base import REGISTERED, Executor

#: Name to executor, in the order of the help.
EXECUTORS: dict[str, Executor] = REGISTERED
