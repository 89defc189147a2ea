"""A kernel set that computes wrongly or fails is noticed before its first result is used."""

import importlib
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import Forked
from loss_inputs import assert_close, sample
from torch import Tensor

import medloss
from medloss.boundary import ball_means, erosion  # noqa: F401  they register their cases
from medloss.kernels import dispatch, eager, group_operators, lovasz_operator, operators, segment_sums, self_check  # noqa: F401
from medloss.kernels.sum_spec import VoxelTerms

KEY = self_check.Key("numba", "cpu", None, torch.float32, "softmax sums")


def _raises(*_: Any) -> Tensor:
    raise RuntimeError("no compiler here\nand more lines")


def _changed(function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: change(function(*arguments))


def _one_nan(values: Tensor) -> Tensor:
    values.view(-1)[7] = torch.nan
    return values


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"voxel_sums": _changed(eager.voxel_sums, lambda s: s * 1.001)}, "a value differs by"),
    "nan": ({"voxel_sums": _changed(eager.voxel_sums, _one_nan)}, "a value differs by nan"),
    "type": ({"voxel_sums": _changed(eager.voxel_sums, Tensor.double)}, "got torch.float64"),
    "gradient": ({"voxel_sums_backward": _changed(eager.voxel_sums_backward, Tensor.neg)}, "a value differs by"),
    "raises": ({"voxel_sums": _raises}, "RuntimeError: no compiler here; please report this line"),
    "gradient_raises": ({"voxel_sums_backward": _raises}, "RuntimeError: no compiler here"),
}

SETS = [name for name in medloss.kernels.available() if dispatch.module(name).supports("cpu", torch.float32)]

every_fault = pytest.mark.parametrize("fault", FAULTS)


@pytest.fixture
def unforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preferred set is used, and nothing of it is checked yet."""
    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(self_check, "_passed", {})


@pytest.fixture
def broken(unforced: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Takes a fault's name: from then on the CPU's preferred set has it."""

    def put(fault: str) -> None:
        functions = {name: getattr(eager, name) for name in ("voxel_sums", "voxel_sums_backward", "entropy_map")}
        fake = SimpleNamespace(**functions | FAULTS[fault][0], supports=eager.supports, preferred=eager.preferred)
        monkeypatch.setattr(dispatch, "module", lambda name: fake if name == "numba" else eager)

    monkeypatch.setattr(dispatch, "_best", dispatch._best.__wrapped__)  # what was remembered is of the real set
    monkeypatch.setattr(dispatch, "_installed", lambda name: name != "triton")
    return put


def _loss(function: Callable[..., Tensor] | None = None) -> list[Tensor]:
    drawn = sample("softmax", 3)
    logits = drawn.logits.float().requires_grad_()
    loss = medloss.DiceLoss(softmax=True) if function is None else function
    value = loss(logits, drawn.index)
    return [value.detach(), *torch.autograd.grad(value, logits)]


def _expected() -> list[Tensor]:
    with medloss.kernels.use("eager"):
        return _loss()


def _assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@every_fault
def test_plain_torch_takes_the_place_of_a_broken_set_with_one_warning(broken: Any, fault: str) -> None:
    expected = _expected()
    broken(fault)
    with pytest.warns(UserWarning, match="'numba' for softmax sums, torch.float32 on cpu failed its check") as caught:
        _assert_equal(_loss(), expected)
        _assert_equal(_loss(), expected)
    (message,) = (str(one.message) for one in caught)
    assert FAULTS[fault][1] in message and "MEDLOSS_KERNELS=numba uses it unchecked" in message
    assert "more lines" not in message


def test_what_is_in_use_says_where_plain_torch_takes_the_place(broken: Any) -> None:
    broken("value")
    assert medloss.kernels.in_use() == "numba"  # nothing was checked yet
    with pytest.warns(UserWarning, match="failed its check"):
        _loss()
    found = "numba, but eager for softmax sums"
    assert (medloss.kernels.in_use(), medloss.kernels.in_use(dtype=torch.float64)) == (found, "numba")
    with medloss.kernels.use("numba"):
        assert medloss.kernels.in_use() == "numba"


def test_every_check_can_be_made_at_once(unforced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(medloss.LOSSES) and set(self_check.works()) > {"labels", "contours", "softmax groups"}
    monkeypatch.setattr(dispatch, "_best", lambda *_: "numba")
    monkeypatch.setattr(self_check, "_fault", lambda key: "no" if key.work in ("erosion", "labels") else "")
    with pytest.warns(UserWarning, match="failed its check"):
        assert medloss.kernels.check() == medloss.kernels.in_use() == "numba, but eager for erosion, labels"
    assert {key.work for key in self_check._passed} == set(self_check.works())


@pytest.mark.parametrize("name", ["entropy_map", "voxel_sums_backward"])
def test_a_broken_map_is_noticed_too(broken: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(FAULTS, "map", ({name: _changed(getattr(eager, name), lambda m: m * 1.01)}, ""))
    broken("map")
    drawn, weights = sample("softmax", 3), torch.ones(2, 3)
    terms = VoxelTerms("softmax", entropy="plain")
    with pytest.warns(UserWarning, match="'numba' for softmax map"):
        value = operators.entropy_map(terms, drawn.logits.float(), drawn.index, None, weights, weights)
    with medloss.kernels.use("eager"):
        assert torch.equal(
            value, operators.entropy_map(terms, drawn.logits.float(), drawn.index, None, weights, weights)
        )


def test_a_forced_set_is_used_as_it_is(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _expected()
    broken("value")
    with medloss.kernels.use("numba"):
        assert not torch.equal(_loss()[0], expected[0])
    monkeypatch.setenv(dispatch.VARIABLE, "numba")
    assert not torch.equal(_loss()[0], expected[0])
    broken("raises")
    with pytest.raises(RuntimeError, match="no compiler here"):
        _loss()
    assert not self_check._passed


def test_a_check_is_made_once_whichever_threads_ask(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def slow(key: self_check.Key) -> str:
        made.append(threading.current_thread().name)
        time.sleep(0.05)
        return original(key)

    original = self_check._fault
    monkeypatch.setattr(self_check, "_fault", slow)
    broken("value")
    expected, results, barrier = _expected(), [], threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        results.append(_loss())

    threads = [threading.Thread(target=work) for _ in range(6)]
    with pytest.warns(UserWarning) as caught:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == len(caught) == 1 and len(results) == 6
    for found in results:
        _assert_equal(found, expected)


def test_a_check_is_made_for_each_type_and_mode(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[self_check.Key] = []
    monkeypatch.setattr(self_check, "_fault", lambda key: seen.append(key) or "")
    broken("value")
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        for mode in ("softmax", "sigmoid"):
            assert dispatch.choose("cpu", dtype, f"{mode} sums") == "numba"
    assert len(seen) == len(set(seen)) == 4


def test_nothing_that_the_caller_has_switched_on_reaches_a_check(broken: Any) -> None:
    broken("value")
    settings: list[Callable[[], Any]] = [
        torch.inference_mode, torch.no_grad, lambda: torch.device("meta"),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch._subclasses.FakeTensorMode(), lambda: torch.autograd.graph.saved_tensors_hooks(_raises, _raises),
    ]  # fmt: skip
    for setting in settings:
        self_check._passed.clear()
        with setting(), pytest.warns(UserWarning, match="a value differs by"):
            assert not self_check.passes(KEY)


def test_a_sound_set_passes_without_a_word(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "none", ({}, ""))
    broken("none")
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose("cpu", torch.float32, "softmax sums") == "numba"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compiled_loss_is_checked_while_it_is_traced(broken: Any) -> None:
    expected = _expected()
    broken("value")
    torch.compiler.reset()
    with pytest.warns(UserWarning, match="failed its check") as caught:
        for found, wanted in zip(
            _loss(torch.compile(medloss.DiceLoss(softmax=True, validate=False), fullgraph=True, backend="aot_eager")),
            expected,
            strict=True,
        ):
            assert_close(found, wanted)
    assert len([one for one in caught if "failed its check" in str(one.message)]) == 1


def test_a_captured_graph_is_made_of_plain_torch_until_the_set_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(self_check, "_in_a_thread", lambda key: "")
    monkeypatch.setattr(self_check, "_passed", {})
    monkeypatch.setattr(self_check, "_postponed", set())
    key = self_check.Key("triton", "cuda", 1, torch.bfloat16, "softmax sums")
    message = "'triton' for softmax sums, torch.bfloat16 on cuda:1 is not checked yet"
    with pytest.warns(UserWarning, match=message) as caught:
        assert not self_check.passes(key) and not self_check.passes(key)
    assert len(caught) == 1
    capturing[0] = False
    assert self_check.passes(key)
    capturing[0] = True
    assert self_check.passes(key)


def test_without_memory_nothing_is_decided(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(FAULTS, "full", ({"voxel_sums": full}, ""))
    broken("full")
    with pytest.raises(torch.OutOfMemoryError):
        self_check.passes(KEY)
    monkeypatch.setitem(FAULTS, "none", ({}, ""))
    broken("none")
    assert self_check.passes(KEY)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("kernels", [pytest.param("numba"), pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", self_check._cases)
def test_sound_sets_pass_and_a_case_notices_every_result(
    kernels: str, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels not in SETS:
        pytest.skip(f"{kernels} is not installed, or not for this device")
    key = self_check.Key(kernels, "cpu", None, torch.float32, work)
    assert self_check._in_a_thread(key) == ""
    case, _ = self_check._cases[work]
    with monkeypatch.context() as patch:
        patch.setattr(self_check._current, "kernels", "eager")
        results = case(torch.device("cpu"), torch.float32)
    # But for rows that are not asked for.
    assert sum(bool(result.any()) for result in results) >= len(results) - 7
    for number, result in enumerate(results):
        if result.any():
            wrong = [*results[:number], result * 1.001, *results[number + 1 :]]
            monkeypatch.setitem(self_check._cases, work, (lambda *_, wrong=wrong: wrong, lambda *_: results))
            assert "differs by" in self_check._in_a_thread(key)
    assert self_check.kernels_under_check() is None


def test_a_forked_process_does_not_wait_for_its_parents_check(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "none", ({}, ""))
    broken("none")
    with self_check._lock:
        process = Forked(lambda: sys.exit(not self_check.passes(KEY)))
    assert process.join() == 0


@pytest.mark.parametrize(
    ("loss", "module", "function", "change"),
    [
        ("hausdorff_dt", "labels", "first_largest", lambda labels: 2 - labels),
        ("shape_aware", "labels", "first_largest", lambda labels: 2 - labels),
        ("structural_similarity", "labels", "class_masks", torch.logical_not),
        ("shape_aware", "contours", "contour_distances", lambda means: means * 1.01),
        ("shape_aware", "contours", "outside_distances", lambda maps: maps * 1.01),
        ("unified_focal", "", "voxel_sums", "focal_background"),
        ("exponential_logarithmic", "", "voxel_sums", "power"),
        ("instance_wise", "segments", "sums_by_segment", "focal_background"),
    ],
)
def test_a_kernel_of_a_single_loss_is_checked(
    unforced: None, monkeypatch: pytest.MonkeyPatch, loss: str, module: str, function: str, change: Any
) -> None:
    """Where `change` is an entropy, its sums alone are wrong."""
    pytest.importorskip("numba")
    kernels = importlib.import_module(f"medloss.kernels.numba.{module}".rstrip("."))
    sound, drawn = getattr(kernels, function), sample("softmax", 3)
    arguments = {"loss": "unified_focal"} if loss == "instance_wise" else {}
    make = medloss.create_loss(loss, softmax=True, **arguments)

    def broken_one(*given: Any) -> Any:
        if callable(change):
            return change(sound(*given))
        result = sound(*given)
        if given[0].entropy != change:
            return result
        return (result[0] * 1.01, result[1]) if isinstance(result, tuple) else result * 1.01

    with medloss.kernels.use("eager"):
        expected = make(drawn.logits.float(), drawn.index)
    monkeypatch.setattr(kernels, function, broken_one)
    with pytest.warns(UserWarning, match="failed its check"):
        assert_close(make(drawn.logits.float(), drawn.index), expected, rtol=1e-5)


def test_a_distance_kernel_that_failed_does_not_serve_contours(unforced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    contours = pytest.importorskip("medloss.kernels.numba.contours")
    monkeypatch.setattr(contours, "contour_distances", _raises)
    keys = [self_check.Key("numba", "cpu", None, torch.float32, work) for work in ("contours", "outside distances")]
    for key, passed in zip(keys, (True, False), strict=True):
        monkeypatch.setitem(self_check._passed, key, passed)
    drawn = sample("softmax", 3)
    assert medloss.ShapeAwareLoss(softmax=True)(drawn.logits.float(), drawn.index).isfinite()
