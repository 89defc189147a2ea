"""What the compiled CPU kernels promise besides what all kernel sets do: threads, forks, and the cache on disk."""

import hashlib
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import medloss
from medloss.checks import as_signed
from medloss.errors import InputError
from medloss.inputs import LossInputs, Mode
from medloss.kernels.segment_sums import segment_sums
from medloss.kernels.sum_spec import ROWS, VoxelTerms, sum_type

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

from medloss.kernels import numba as kernels
from medloss.kernels import thread_pool
from medloss.kernels.numba import sums as sums_module
from medloss.kernels.numba.blocks import KINDS
from medloss.kernels.thread_pool import Pool

PACKAGE = Path(kernels.__file__).parents[2]
TERMS = VoxelTerms("softmax", overlap=True, squares=True, errors=True, entropy="focal", gamma=2.0)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _sample(voxels: int = 70_000, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, voxels, generator=generator)
    target = torch.randint(0, classes, (2, 1, voxels), generator=generator)
    return logits, target, torch.randn(ROWS, 2, classes, generator=generator)


def _both(logits: Tensor, target: Tensor, sum_gradients: Tensor, terms: VoxelTerms = TERMS) -> tuple[Tensor, Tensor]:
    sums = kernels.voxel_sums(terms, logits, target, None, None)
    return sums, kernels.voxel_sums_backward(terms, logits, target, None, None, sum_gradients)


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _bytes(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def _in_child(queue: Any, drawn: tuple[Tensor, Tensor, Tensor], count: int) -> None:
    torch.set_num_threads(count)
    sums, gradient = _both(*drawn)
    queue.put((_bytes(sums), _bytes(gradient)))


# --- threads -------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_threads(threads: Any) -> None:
    drawn = _sample(300_000)
    threads(1)
    alone = _both(*drawn)
    for count in (2, 3, 7, 2):
        threads(count)
        assert _same(_both(*drawn), alone)


def test_threads_may_call_at_the_same_time(threads: Any) -> None:
    drawn = _sample(300_000)
    threads(2)
    expected = _both(*drawn)
    found: list[bool] = []
    callers = [threading.Thread(target=lambda: found.append(_same(_both(*drawn), expected))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 6


def test_forked_children_work_after_the_parent_has_and_while_it_does(threads: Any) -> None:
    drawn = _sample(300_000)
    threads(2)
    sums, gradient = _both(*drawn)
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            _both(*drawn)

    parent = threading.Thread(target=busy)
    parent.start()
    try:
        context = multiprocessing.get_context("fork")
        for count in (1, 2):
            queue = context.Queue()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12, of any fork with threads
                child = context.Process(target=_in_child, args=(queue, drawn, count))
                child.start()
            found = queue.get(timeout=600)
            child.join(600)
            assert child.exitcode == 0
            assert found == (_bytes(sums), _bytes(gradient))
    finally:
        done.set()
        parent.join()


@pytest.mark.parametrize("helpers", [False, True])
def test_pool_draws_every_number_once_and_lets_errors_out(helpers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if helpers:
        monkeypatch.setattr(thread_pool, "_openmp_parallel", lambda *_: None)
    pool, drawn = Pool(), list[int]()
    for workers in (1, 2, 5):
        drawn.clear()
        pool.run(drawn.extend, 1000, workers)
        assert sorted(drawn) == list(range(1000))

    def fail(numbers: Any) -> None:
        for number in numbers:
            if number == 7:
                raise ValueError("seven")

    for workers in (1, 3):
        with pytest.raises(ValueError, match="seven"):
            pool.run(fail, 1000, workers)
    pool.run(drawn.extend, 10, 2)  # and still works


@pytest.mark.parametrize("way", ["openmp", "helpers", "no thread", "forked"])
def test_compiled_work_is_done_once_whichever_threads_there_are(
    way: str, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = _sample(300_000)
    threads(1)
    expected = _both(*drawn)
    threads(3)
    monkeypatch.setattr(sums_module, "POOL", Pool())
    if way == "forked":
        sums_module.POOL._after_fork()
    elif way != "openmp":
        monkeypatch.setattr(thread_pool, "_openmp_parallel", lambda *_: None)
    if way == "no thread":
        monkeypatch.setattr(Pool, "_start", lambda *_: [])
    assert _same(_both(*drawn), expected)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("target", lambda t: t.to("meta")),
        ("target", lambda t: t[..., 1:].contiguous()),
        ("target", lambda t: t.expand(-1, 3, -1).contiguous()),
        ("mask", lambda t: t[:, 0].to("meta", torch.bool)),
        ("mask", lambda t: t[:, 0]),
        ("mask", lambda t: t.bool()),
        ("voxel_weight", lambda t: t.double()),
        ("voxel_weight", lambda t: t.expand(-1, 2, -1).float().contiguous()),
    ],
)
def test_what_cannot_be_read_at_an_address_is_refused(argument: str, change: Any) -> None:
    logits, target, sum_gradients = _sample(100)
    given: dict[str, Any] = {"target": target, "mask": None, "voxel_weight": None} | {argument: change(target)}
    for call, *more in ((kernels.voxel_sums,), (kernels.voxel_sums_backward, sum_gradients)):
        with pytest.raises(InputError, match=f"^{argument}: got .* expected .* on the CPU"):
            call(TERMS, logits, *given.values(), *more)
    with pytest.raises(InputError, match=r"^sum_gradients: got"):
        kernels.voxel_sums_backward(TERMS, logits, target, None, None, sum_gradients.double())


def test_sums_of_no_voxels_are_0() -> None:
    logits, target, _ = _sample(100)
    assert not kernels.voxel_sums(TERMS, logits[..., :0], target[..., :0], None, None).any()


def test_chunks_that_no_thread_had_memory_for_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "call", lambda *_: None)
    with pytest.raises(MemoryError, match="no memory for its buffers"):
        _both(*_sample(1000))


@pytest.mark.skipif(thread_pool._openmp_parallel() is None, reason="torch does not use GNU OpenMP here")
def test_pool_shares_the_threads_of_torch() -> None:
    taken = threading.Barrier(2, timeout=60)

    def wait(numbers: Any) -> None:
        for _ in numbers:
            taken.wait()  # in two threads at once, or never

    def refuse(*_: Any) -> None:
        raise AssertionError("a helper was started")

    pool = Pool()
    pool._start = refuse  # type: ignore[method-assign, assignment]
    pool.run(wait, 2, 2)


def test_a_smaller_team_does_all_the_work() -> None:
    numbers, drawn = thread_pool._Numbers(10), list[int]()
    thread_pool._run_in_team(lambda body, *_: body(), drawn.extend, numbers, 3)
    assert drawn == list(range(10))


def test_pool_leaves_the_work_to_the_caller_where_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(thread_pool, "_openmp_parallel", lambda *_: None)
    drawn: list[int] = []
    Pool().run(drawn.extend, 100, 4)
    assert drawn == list(range(100))


def test_nothing_hangs_when_the_interpreter_ends() -> None:
    code = """if True:
        import atexit, threading, torch
        from test_numba import _both, _sample
        torch.set_num_threads(2)
        drawn = _sample(300_000)
        _both(*drawn)
        atexit.register(lambda: print("late", _both(*drawn)[0].shape))
        threading.Thread(target=lambda: [_both(*drawn) for _ in range(3)]).start()
    """
    paths = os.pathsep.join([str(PACKAGE.parent), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert "late" in ran.stdout
    assert not ran.stderr


@pytest.mark.parametrize("name", ["hausdorff_er", "hausdorff_cv"])
def test_threads_that_share_maps_work_in_inference_mode(name: str, threads: Any) -> None:
    threads(2)
    loss = medloss.create_loss(name, softmax=True)
    logits = torch.randn(2, 3, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    target = (logits.roll(1, 2).argmax(1, keepdim=True) + 1) % 3
    expected = loss(logits, target, spacing=(1.0, 1.0, 2.5))
    for _ in range(5):  # which thread draws a map is chance
        with torch.inference_mode():
            found = loss(logits.clone(), target, spacing=(1.0, 1.0, 2.5))
        assert torch.equal(found, expected)


def test_a_team_smaller_than_requested_does_all_work_silently(monkeypatch: Any) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    done: list[int] = []

    def nested(numbers: Any) -> None:  # inside a parallel region OpenMP starts no further threads
        for _ in numbers:
            Pool().run(done.extend, 3, 4)

    Pool().run(nested, 2, 2)
    assert (sorted(done), reported) == ([0, 0, 1, 1, 2, 2], [])


def test_no_interrupt_is_lost() -> None:
    code = """if True:
        import os, signal, threading, time
        from medloss.kernels.thread_pool import POOL
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job that a shell runs in the background
        POOL.run(list, 2, 2)
        caught = 0
        for number in range(40):
            threading.Timer(0.01 + 0.0003 * number, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    POOL.run(list, 2, 2)
                break
            except KeyboardInterrupt:
                caught += 1
        print(caught)
    """
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert (ran.stdout.strip(), ran.stderr) == ("40", "")


@pytest.mark.parametrize("ignored", [None, 1])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_masks_of_classes_are_those_of_plain_torch(dtype: torch.dtype, ignored: int | None, threads: Any) -> None:
    threads(2)
    drawn = torch.randint(0, 5, (2, 1, 7, 50, 801), generator=torch.Generator().manual_seed(0))
    target = as_signed((drawn - 1 if dtype.is_signed else drawn).to(dtype))
    if dtype.is_floating_point:
        target[0, 0, 0, 0, :2] = torch.tensor([1.5, torch.nan], dtype=dtype)
    for index, classes in ((target, 3), (target.transpose(3, 4), 4), (target[:1, :, :1, :1, 1:2], 2)):
        inputs = LossInputs(
            torch.zeros(len(index), classes, *index.shape[2:]), index, None, Mode.CATEGORICAL, True, None,
            [(1.0, 1.0, 1.0)] * len(index), ignore_index=ignored,
        )  # fmt: skip
        with medloss.kernels.use("eager"):
            expected = inputs.target_masks()
        with medloss.kernels.use("numba"):
            assert torch.equal(inputs.target_masks(), expected)


# --- the cache -----------------------------------------------------------------------------------------------------

CHILD = """if True:
    import os, sys, warnings
    warnings.simplefilter("error")
    sys.dont_write_bytecode = True
    import numba, torch
    sys.path.insert(0, sys.argv[1])
    warnings.simplefilter("ignore")  # of what MONAI and torch import
    import medloss
    warnings.simplefilter("error")
    os.environ["HOME"] = sys.argv[2]
    os.environ.pop("XDG_CACHE_HOME", None)
    if os.geteuid() == 0:
        os.setgid(65534)  # root may write anywhere
        os.setuid(65534)
    from medloss.kernels import numba as kernels
    from medloss.kernels.numba import team
    from medloss.kernels.sum_spec import VoxelTerms
    assert kernels.__file__.startswith(sys.argv[1])
    target = torch.ones(1, 1, 50, dtype=torch.uint8)
    sums = kernels.voxel_sums(VoxelTerms("softmax", overlap=True), torch.zeros(1, 2, 50), target, None, None)
    assert sums[0].tolist() == [[0, 25]]
    print(team.callback(team.SUMS[32]).cache_hits)
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    pytest_folders = [folder for folder in tmp_path.parents if "pytest-" in folder.name or "popen-" in folder.name]
    for folder in (tmp_path, *pytest_folders):
        folder.chmod(0o755)
    package = tmp_path / "site" / "medloss"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


@pytest.fixture
def read_only(copied: Path) -> Any:
    package = copied
    folders = [package.parent, package, *(path for path in package.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield package.parent
    for folder in folders:
        folder.chmod(0o755)


def _start(site: Path, home: Path, **environment: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | environment
    command = [sys.executable, "-c", CHILD, str(site), str(home)]
    return subprocess.Popen(
        command, env=environment, cwd=site, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _hits(*children: "subprocess.Popen[str]") -> list[int]:
    outputs = [child.communicate(timeout=600) for child in children]
    assert [child.returncode for child in children] == [0] * len(children), outputs
    assert all(not errors for _, errors in outputs)
    return [int(out) for out, _ in outputs]


@pytest.mark.slow
def test_cache_of_a_read_only_installation_lies_in_the_users_folder(read_only: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    _hits(_start(read_only, home), _start(read_only, home))  # two first calls at once
    assert _hits(_start(read_only, home)) == [1]


@pytest.mark.slow
def test_a_change_in_any_file_of_the_kernels_compiles_again(copied: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    for changed, expected in (("", 0), ("", 1), ("numba/terms.py", 0), ("", 1), ("sum_spec.py", 0)):
        if changed:
            file = copied / "kernels" / changed
            file.write_text(file.read_text() + "# changed\n")
        assert _hits(_start(copied.parent, tmp_path, NUMBA_CACHE_DIR=str(cache))) == [expected]


@pytest.mark.slow
def test_without_any_folder_for_the_cache_it_works_too(read_only: Path, tmp_path: Path) -> None:
    home = tmp_path / "nothing"
    home.mkdir()
    home.chmod(0o555)
    assert _hits(_start(read_only, home)) == [0]


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_targets_of_every_type_agree_to_the_bit(kind: torch.dtype) -> None:
    logits, target, sum_gradients = _sample(3000)
    expected = _both(logits, target, sum_gradients)
    maps = torch.nn.functional.one_hot(target[:, 0], 5).movedim(-1, 1).contiguous()
    for other in [maps.to(kind)] + [target.to(kind)] * (kind != torch.bool):
        assert _same(_both(logits, other, sum_gradients), expected)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.uint64, torch.float16, torch.float32])
def test_labels_out_of_range_belong_to_no_class(kind: torch.dtype) -> None:
    logits, target, sum_gradients = _sample(3000)
    high = 100 if kind == torch.int8 else 255
    strange = torch.where(torch.rand(target.shape) < 0.2, torch.tensor(high), target)
    maps = torch.stack([strange[:, 0] == c for c in range(5)], 1)
    assert _same(_both(logits, strange.to(kind), sum_gradients), _both(logits, maps, sum_gradients))


def test_bfloat16_gradients_round_to_the_nearest_even() -> None:
    logits, target, sum_gradients = _sample(3000)
    short = logits.bfloat16()
    sums, gradient = _both(short, target, sum_gradients)
    long_sums, long_gradient = _both(short.float(), target, sum_gradients)
    assert torch.equal(sums, long_sums)
    assert torch.equal(gradient, long_gradient.bfloat16())


@pytest.mark.parametrize("mode", ["softmax", "sigmoid", "probabilities"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_comes_out_in_its_item_alone(mode: str, dtype: torch.dtype) -> None:
    logits, target, sum_gradients = _sample(3000, 3)
    logits = logits.sigmoid().to(dtype)
    logits[1, 1, 70] = float("nan")
    target[1, 0, 70] = 1
    terms = VoxelTerms(mode, overlap=True, squares=True, errors=True, entropy="plain")
    sums, gradient = _both(logits, target, sum_gradients.to(sum_type(logits)), terms)
    assert sums[[0, 1, 3, 5, 7], 1, 1].isnan().all()
    assert gradient[1, 1, 70].isnan()
    assert not sums[:, 0].isnan().any()
    assert not gradient[0].isnan().any()


@pytest.mark.parametrize("entropy", ["plain", "focal", "power"])
def test_a_logit_of_minus_infinity_is_a_class_that_cannot_be(entropy: str) -> None:
    logits, target, sum_gradients = _sample(3000, 3)
    target = target.clamp(max=1)
    logits[:, 2] = -float("inf")
    for gamma in (0.5, 2.0):
        terms = VoxelTerms("softmax", overlap=True, squares=True, errors=True, entropy=entropy, gamma=gamma)
        sums, gradient = _both(logits, target, sum_gradients, terms)
        two, two_gradient = _both(logits[:, :2].contiguous(), target, sum_gradients[:, :, :2].contiguous(), terms)
        assert torch.allclose(sums[:, :, :2], two, rtol=1e-6)
        assert (gradient[:, 2] == 0).all()
        assert torch.allclose(gradient[:, :2], two_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["sigmoid", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "sums",
    [
        {"overlap": True},
        {"squares": True},
        {"errors": True},
        {"entropy": "plain"},
        {"entropy": "power", "gamma": 1.5},
        {"entropy": "focal_background", "gamma": 0.7},
    ],
    ids=str,
)
def test_sums_of_segments_are_those_of_plain_torch(mode: str, weighted: bool, sums: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    voxels = 5000
    logits = torch.randn(voxels, generator=generator)
    logits = logits if mode == "sigmoid" else logits.sigmoid()
    target = torch.arange(voxels) % 17 < 6
    segment = (torch.arange(voxels) // 41 % 5 - 1).int()
    logits[segment < 0] = float("nan")
    weight = torch.rand(voxels, generator=generator) if weighted else None
    results = []
    for name in ("eager", "numba"):
        with medloss.kernels.use(name):
            leaf = logits.clone().requires_grad_()
            rows, counts = segment_sums(VoxelTerms(mode, **sums), leaf, target, segment, 4, weight)
            factors = torch.arange(rows.numel()).cos().view_as(rows)
            results.append((rows.detach(), counts, *torch.autograd.grad((factors * rows).sum(), leaf)))
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (results[1][2][segment < 0] == 0).all()
