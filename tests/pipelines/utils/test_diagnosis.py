"""`medloss doctor`: what it prints of this machine, and what it says of others."""

from dataclasses import replace

import pytest
import torch
from cli_call import call_medloss

import medloss
from medloss.kernels import dispatch, self_check
from pipelines.utils import diagnosis
from pipelines.utils.diagnosis import Diagnosis, diagnose, slow

FAST = Diagnosis(
    versions={"torch": "2.13.0"}, processor="a CPU", memory="23 GiB", cores=8, threads=8, load=0.5, gpus=1,
    torch_gpu="a GPU", bfloat16={"CPU": True, "GPU": True}, kernels={"cpu": "numba", "cuda": "triton"},
    installed=("triton", "numba", "eager"),
)  # fmt: skip
#: Changes of a fast machine, and the one line that each gives.
SLOW = [
    ({"forced": "eager"}, "MEDLOSS_KERNELS=eager forces these kernels; unset it to use the fastest that fit"),
    ({"installed": ("triton", "eager")},
     "losses run in plain torch on the CPU: pip install numba adds compiled kernels"),
    ({"installed": ("numba", "eager")},
     "losses run in plain torch on the GPU: pip install triton adds compiled kernels"),
    ({"gpus": 2, "torch_gpu": None},
     "training runs on the CPU: the driver lists 2 GPUs, which torch 2.13.0 cannot use; install a build of torch for "
     "your version of CUDA"),
    ({"gpus": 0, "torch_gpu": None},
     "training runs on the CPU: there is no GPU; the recipe quick is made for this"),
    ({"bfloat16": {"CPU": False}}, "networks compute in float32 on the CPU: it has neither AMX nor AVX512-BF16"),
    ({"bfloat16": {"CPU": True, "GPU": False}},
     "networks compute in float32 on the GPU: it has no instructions for bfloat16"),
    ({"threads": 2}, "torch uses 2 of 8 cores: a limit of threads is set"),
    ({"threads": 9}, "torch starts 9 threads on 8 cores, which wait for each other"),
    ({"load": 8.25}, "other processes are busy: a load of 8.2 on 8 cores"),
    ({"failures": ("kernels: 'numba' is installed, and cannot be imported: x",)},
     "kernels: 'numba' is installed, and cannot be imported: x"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), SLOW, ids=[line[:40] for _, line in SLOW])
def test_one_line_per_reason(changes: dict[str, object], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slow(replace(FAST, **changes)) == [line]  # type: ignore[arg-type]


def test_nothing_is_slow_on_a_fast_machine() -> None:
    assert slow(FAST) == slow(replace(FAST, forced="auto", load=None)) == []


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with medloss.kernels.use("eager"):
        found = diagnose()
    assert found.kernels["cpu"] == "eager"
    assert found.threads == torch.get_num_threads()
    assert found.versions["torch"] == torch.__version__
    assert (found.torch_gpu is not None) == torch.cuda.is_available() == ("cuda" in found.kernels)
    monkeypatch.setenv("MEDLOSS_KERNELS", "cuda")
    assert diagnose().kernels["cpu"] == "none, MEDLOSS_KERNELS: got 'cuda'; expected one of auto, triton, numba, eager"


def test_kernels_that_failed_their_check_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.delenv("MEDLOSS_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "_best", lambda *_: "numba")
    monkeypatch.setattr(self_check, "_passed", {})
    monkeypatch.setattr(self_check, "_fault", lambda key: "a value differs" if key.work == "labels" else "")
    found = diagnose()
    assert found.kernels["cpu"] == "numba, but eager for labels"
    assert any("'numba' for labels" in line and "failed its check" in line for line in slow(found))


@pytest.mark.parametrize(("found", "heading"), [
    (FAST, "Nothing here is slower than it has to be."),
    (replace(FAST, threads=2), "What is slow here, and why:\n- torch uses 2 of 8 cores"),
])  # fmt: skip
def test_the_command(found: Diagnosis, heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "diagnose", lambda: found)
    code, out, err = call_medloss("doctor")
    assert (code, err) == (0, "")
    assert "\nprocessor a CPU, 8 cores, 23 GiB\n" in out
    assert "\nGPU       a GPU\nbfloat16  CPU: yes, GPU: yes\n" in out
    assert "\nkernels   cpu: numba, cuda: triton (installed: triton, numba, eager)\n" in out
    assert f"\n{heading}" in out
