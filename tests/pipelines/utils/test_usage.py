"""Samples of the machine: taken during a run, kept after a kill, and never in the run's way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

from pipelines.utils.usage import NAME, read_samples, sampled

_METRICS = {
    "time", "cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage",
}  # fmt: skip


def _wait_for(folder: Path, count: int) -> None:
    wait_for(lambda: len(read_samples(folder)) >= count, what=f"{count} samples")


def test_samples_of_the_machine(tmp_path: Path) -> None:
    before = time.time()
    with sampled(tmp_path, min_interval_s=0.01):
        _wait_for(tmp_path, 3)
    samples = read_samples(tmp_path)
    assert [number for number, _ in samples] == list(range(1, len(samples) + 1))
    times = [sample["time"] for _, sample in samples]
    assert times == sorted(times) and before - 1 <= times[0] <= time.time()
    whole = psutil.virtual_memory().total / 1e6
    for _, sample in samples:
        assert set(sample) >= _METRICS
        assert all(name.startswith("gpu_") for name in set(sample) - _METRICS)
        assert 0 <= sample["cpu_utilization_percentage"] <= 100
        used, share = sample["system_memory_usage_megabytes"], sample["system_memory_usage_percentage"]
        assert 0 < used < whole
        assert share == pytest.approx(100 * used / whole, abs=0.06)


def test_a_busy_processor_shows(tmp_path: Path) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        with sampled(tmp_path, min_interval_s=1.0):
            _wait_for(tmp_path, 1)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert read_samples(tmp_path)[0][1]["cpu_utilization_percentage"] > 50


def test_a_short_run_has_one_sample_and_leaves_no_thread(tmp_path: Path) -> None:
    with sampled(tmp_path):
        assert "system metrics" in {thread.name for thread in threading.enumerate()}
    assert len(read_samples(tmp_path)) == 1
    assert "system metrics" not in {thread.name for thread in threading.enumerate()}


def test_an_error_of_the_run_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sampled(tmp_path):
        _ = 1 / 0
    assert len(read_samples(tmp_path)) == 1


def test_problems_of_the_folder_do_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    done = []
    for folder in (tmp_path, tmp_path / "none"):
        with sampled(folder, min_interval_s=0.01):
            time.sleep(0.05)
            done.append(folder)
        assert read_samples(folder) == []
    assert len(done) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is Linux's full disk")
def test_a_full_disk_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("/dev/full")
    done = False
    with sampled(tmp_path, min_interval_s=0.01):
        time.sleep(0.05)
        done = True
    assert done


def test_numbers_continue_after_a_kill(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pipelines.utils.usage import sampled\n"
        "with sampled(Path(sys.argv[1]), min_interval_s=0.01): time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        _wait_for(tmp_path, 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = read_samples(tmp_path)
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"time": 17000')  # an incomplete line
    assert read_samples(tmp_path) == before
    with sampled(tmp_path, min_interval_s=0.01):
        _wait_for(tmp_path, len(before) + 1)
    after = read_samples(tmp_path)
    assert after[: len(before)] == before
    # The incomplete line takes up a number.
    assert next(number for number, _ in after[len(before) :]) == len(before) + 2


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    lines = [json.dumps({"time": 1.0, "cpu_utilization_percentage": 5.0}), "\0\0\0", "[1]", '{"time": null}', "{}"]
    (tmp_path / NAME).write_text("\n".join([*lines, json.dumps({"time": 2.0}), ""]))
    assert [number for number, _ in read_samples(tmp_path)] == [1, 6]
