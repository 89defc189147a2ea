"""Starts the processes that measure, watches them, and gathers what they found."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.comparison.planning.probe import (
    Common,
    Step,
    go_file,
    job_file,
    ready_file,
    result_file,
)
from pipelines.errors import UserError
from pipelines.files import read_json, write_json
from pipelines.threads import thread_environment
from pipelines.training.run_config import RunConfig

_POLL_S = 0.05


def probe(
    configs: Sequence[RunConfig], jobs: int, threads: int, folder: Path, tell: Callable[[str], None]
) -> tuple[dict[str, Step], Common, float]:
    """Measure losses in so many processes at a time.

    Args:
        configs: one a loss.
        jobs: processes; those without a loss of their own train, too.
        threads: of the processor, for each.
        folder: for what they tell.
        tell: called with a line for people as each loss is done.

    Returns:
        The steps by loss, what all losses have in common, and the seconds until a process is ready.

    Raises:
        UserError: no process gets as far as a loss.
    """
    folder.mkdir()
    probers = [_Prober(folder, number, configs, jobs, threads) for number in range(jobs)]
    told = 0
    try:
        began = time.perf_counter()
        for prober in probers:
            prober.start()
        while not all(prober.ready() for prober in probers):
            time.sleep(_POLL_S)
        worker_s = time.perf_counter() - began
        go_file(folder).touch()
        at_work = True
        while at_work:
            time.sleep(_POLL_S)
            at_work = False
            for prober in probers:
                at_work |= not prober.over()
                for loss, step in prober.news():
                    told += 1
                    what = step.error if step.seconds is None else f"{step.seconds:.3f} s a step"
                    tell(f"measured {told}/{len(configs)}: {loss}: {what}")
    finally:
        for prober in probers:
            prober.end()
    found = {loss: step for prober in probers for loss, step in prober.steps.items()}
    return {config.loss: found[config.loss] for config in configs}, _mean([p.common for p in probers]), worker_s


class _Prober:
    """One process: every `jobs`-th loss is its own."""

    def __init__(self, folder: Path, number: int, configs: Sequence[RunConfig], jobs: int, threads: int) -> None:
        self.folder, self.number, self.threads = folder, number, threads
        self.own = list(configs[number::jobs])
        # Without a loss of its own it is company alone.
        self.trained = self.own or [configs[number % len(configs)]]
        self.steps: dict[str, Step] = {}
        self.common: Common | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.told = 0

    @property
    def log(self) -> Path:
        return self.folder / f"log{self.number}"

    def start(self) -> None:
        """Start the process, at the first loss of which nothing is known."""
        job: dict[str, Any] = {"configs": [config.model_dump(mode="json") for config in self.trained]}
        write_json(job_file(self.folder, self.number), job | {"first": len(self.steps), "measured": len(self.own)})
        command = [sys.executable, "-m", "pipelines.comparison.planning.probe", str(self.folder)]
        command += [str(self.number), str(os.getpid())]
        environment = os.environ | thread_environment(self.threads)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def ready(self) -> bool:
        """Whether it has come as far as its first loss."""
        if self._died() is not None:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise UserError(f"nothing can be measured: {lines[-1][:300] if lines else 'its process died'}")
        return ready_file(self.folder, self.number).exists()

    def over(self) -> bool:
        """Whether all its losses are measured; one that ends its process counts as failed."""
        died = self._died()
        while len(self.steps) < len(self.own):
            found = read_json(result_file(self.folder, self.number, len(self.steps)))
            if found is None:
                break
            self._note(Step(**found["step"]))
            self.common = self.common or (Common(**found["common"]) if found["common"] else None)
        left = len(self.steps) < len(self.own)
        if died is not None and left:
            cause = f"signal {-died}" if died < 0 else f"exit code {died}"
            advice = "; often a lack of memory: fewer --jobs, or a lower --batch-size" if died == -9 else ""
            self._note(Step(None, error=f"its process died ({cause}){advice}"))
            self.start()
        return not left

    def news(self) -> list[tuple[str, Step]]:
        """What has become known since it was last asked."""
        new = list(self.steps.items())[self.told :]
        self.told = len(self.steps)
        return new

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _note(self, step: Step) -> None:
        self.steps[self.own[len(self.steps)].loss] = step

    def _died(self) -> int | None:
        return None if self.process is None else self.process.poll()


def _mean(found: Sequence[Common | None]) -> Common:
    known = [common for common in found if common is not None]
    if not known:
        return Common()
    return Common(**{field.name: fmean(getattr(own, field.name) for own in known) for field in fields(Common)})
