"""What a machine computes with, and what makes it slow: `medloss doctor`."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.utils.machine import available_cores, machine, nvidia_gpus, processor_has_bfloat16, versions
from pipelines.utils.text import counted


@dataclass(frozen=True)
class Diagnosis:
    """A machine's software and hardware.

    Attributes:
        versions: package to version.
        processor: its name.
        memory: such as `23 GiB`.
        cores: available to this process.
        threads: that torch uses.
        load: processes that want a core, mean of the last minute; None where the system does not report it.
        gpus: NVIDIA GPUs that the driver lists.
        torch_gpu: the name of the GPU that torch uses; None if torch finds none.
        bfloat16: whether the CPU has instructions for it, and the GPU, if there is one.
        kernels: the kernel set in use per device, and the work for which another one takes its place; the reason why
            a forced one does not work.
        installed: the kernel sets whose packages are installed.
        forced: the value of `MEDLOSS_KERNELS`; empty if it is not set.
        failures: kernel sets that are installed and cannot be imported, or failed their check, with the reason.
    """

    versions: dict[str, str]
    processor: str
    memory: str
    cores: int
    threads: int
    load: float | None
    gpus: int
    torch_gpu: str | None
    bfloat16: dict[str, bool]
    kernels: dict[str, str]
    installed: tuple[str, ...]
    forced: str = ""
    failures: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and text per line."""
        yield "versions", ", ".join(" ".join(pair) for pair in self.versions.items())
        yield "processor", f"{self.processor}, {counted(self.cores, 'core')}, {self.memory}"
        yield "threads", f"{self.threads} of torch"
        yield "GPU", self.torch_gpu or "none that torch can use"
        yield "bfloat16", ", ".join(f"{device}: {'yes' if has else 'no'}" for device, has in self.bfloat16.items())
        in_use = ", ".join(f"{device}: {name}" for device, name in self.kernels.items())
        yield "kernels", f"{in_use} (installed: {', '.join(self.installed)})"


def diagnose() -> Diagnosis:
    """Look at this machine; its kernels are checked, and compiled for it where that has not been done yet."""
    import torch

    from medloss import LOSSES, InputError, kernels
    from medloss.kernels.dispatch import VARIABLE, check

    has_gpu = torch.cuda.is_available()
    used: dict[str, str] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(LOSSES)  # imports the losses, whose work is checked
        for device in ("cpu", "cuda") if has_gpu else ("cpu",):
            try:
                used[device] = check(device)
            except InputError as error:
                used[device] = f"none, {error}"
    described = machine(torch.device("cuda" if has_gpu else "cpu"))
    bfloat16 = {"CPU": processor_has_bfloat16()}
    if has_gpu:
        bfloat16["GPU"] = torch.cuda.is_bf16_supported(including_emulation=False)
    return Diagnosis(
        versions=versions(),
        processor=described["processor"],
        memory=described["memory"],
        cores=available_cores(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        gpus=nvidia_gpus(),
        torch_gpu=described.get("gpu"),
        bfloat16=bfloat16,
        kernels=used,
        installed=tuple(kernels.available()),
        forced=os.environ.get(VARIABLE, ""),
        failures=tuple(str(warning.message) for warning in caught if str(warning.message).startswith("kernels:")),
    )


def slow(found: Diagnosis) -> list[str]:
    """What is slower than it could be, one line each: what, why, and what to do."""
    lines = list(found.failures)
    if found.forced and found.forced != "auto":
        lines.append(f"MEDLOSS_KERNELS={found.forced} forces these kernels; unset it to use the fastest that fit")
    if "numba" not in found.installed:
        lines.append("losses run in plain torch on the CPU: pip install numba adds compiled kernels")
    if found.gpus and not found.torch_gpu:
        lines.append(
            f"training runs on the CPU: the driver lists {counted(found.gpus, 'GPU')}, which torch "
            f"{found.versions.get('torch', '')} cannot use; install a build of torch for your version of CUDA"
        )
    elif not found.torch_gpu:
        lines.append("training runs on the CPU: there is no GPU; the recipe quick is made for this")
    elif "triton" not in found.installed:
        lines.append("losses run in plain torch on the GPU: pip install triton adds compiled kernels")
    for device, has in found.bfloat16.items():
        if not has:
            missing = "neither AMX nor AVX512-BF16" if device == "CPU" else "no instructions for bfloat16"
            lines.append(f"networks compute in float32 on the {device}: it has {missing}")
    if found.threads < found.cores:
        limit = "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "a limit of threads"
        lines.append(f"torch uses {found.threads} of {found.cores} cores: {limit} is set")
    elif found.threads > found.cores:
        lines.append(f"torch starts {found.threads} threads on {found.cores} cores, which wait for each other")
    if found.load is not None and found.load > found.cores:
        lines.append(f"other processes are busy: a load of {found.load:.1f} on {counted(found.cores, 'core')}")
    return lines
