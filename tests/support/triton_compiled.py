"""Triton's kernels compiled for a GPU, which needs none; `test_triton_kernels` runs this file, without the interpreter.

What a GPU's compiler refuses, the interpreter may take.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from medloss.kernels.sum_spec import VoxelTerms
from medloss.kernels.triton import distance, passes
from medloss.kernels.triton import sums as kernels

COMPILED = [
    (VoxelTerms("softmax", 0, True, False, False, "plain"), 14, torch.bfloat16, torch.int64, False),
    (VoxelTerms("softmax", 1, True, True, True, "focal", 0.5), 3, torch.float32, torch.float32, True),
]


@pytest.fixture
def _nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return GPUTarget("cuda", 90, 32)


def _compile(kernel: Any, target: Any, tensors: dict[str, Any], constants: dict[str, Any], warps: int) -> str:
    types = {
        torch.bool: "u8",
        torch.uint8: "u8",
        torch.int16: "i16",
        torch.int64: "i64",
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
    }
    types |= {torch.float32: "fp32", torch.float64: "fp64"}
    signature, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else f"*{types[tensors[name]]}" if name in tensors else "i32"
        if signature[name][0] == "*" or name in ("voxels", "columns", "size"):
            aligned[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return str(compile(source, target=target, options=options).asm["ttgir"])


@pytest.mark.parametrize("terms,classes,dtype,target_type,masked", COMPILED, ids=lambda value: str(value)[-24:])
def test_passes_compile(
    _nvidia: Any, terms: VoxelTerms, classes: int, dtype: torch.dtype, target_type: torch.dtype, masked: bool
) -> None:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    logits = torch.empty(2, classes, 4096, dtype=dtype, device="meta")
    maps = 1 if target_type in (torch.uint8, torch.int64) else classes
    target = torch.empty(2, maps, 4096, dtype=target_type, device="meta")
    mask = torch.empty(2, 4096, dtype=torch.bool, device="meta") if masked else None
    weight = torch.empty(2, classes - terms.first, 4096, dtype=sums, device="meta") if masked else None
    plan = kernels._plan(terms, logits, target, mask, weight)
    tensors = {"logits": dtype, "target": target_type, "mask": torch.bool, "weight": sums, "gradient": dtype}
    tensors |= dict.fromkeys(("partial", "sum_gradients", "positive", "negative", "out"), sums)
    constants = {"PLAN": plan} | ({} if masked else {"mask": None, "weight": None})
    for kernel in (passes.sums_pass, passes.backward_pass, passes.map_pass):
        named = {name: value for name, value in constants.items() if name in kernel.arg_names}
        code = _compile(kernel, _nvidia, tensors, named, plan.warps)
        if kernel is passes.backward_pass:
            # All tensors are read in the layout that the tile has: nothing is exchanged between threads.
            assert "convert_layout" not in code


def test_distances_compile(_nvidia: Any) -> None:
    tensors = {"masks": torch.uint8, "two_sided": torch.uint8}
    tensors |= dict.fromkeys(("squares", "field", "reached"), torch.float32) | {"stack": torch.int16}
    _compile(distance._first_axis, _nvidia, tensors, {"BLOCK": 128}, 4)
    for inside, outside, last in ((True, True, True), (True, False, False)):
        sides = {"REACH": 64, "INSIDE": inside, "OUTSIDE": outside, "LAST": last}
        _compile(distance._further_axis, _nvidia, tensors, {"BLOCK": 128, "STEPS": 4} | sides, 1)
        # Triton makes a constant of an argument that is 1.
        for ones in ({}, {"inner": 1}, {"inner": 1, "blocks": 1, "channels": 1}):
            _compile(distance._far_voxels, _nvidia, tensors, {"BLOCK": 32} | sides | ones, 1)
