"""The cases of a training: decoded when they are asked for, kept in memory as far as that is allowed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from pipelines.cases.cache import EntryCache
from pipelines.cases.preprocessing import Preprocessing
from pipelines.cases.reading import CHECK, prepared, read_case
from pipelines.dataset.manifest import Case, Manifest
from pipelines.errors import UserError
from pipelines.files import sha256

#: Changes when `reading.py` or `preprocessing.py` do: cached cases of another version are not read.
_CACHE_VERSION = "3"


class CaseStore(Sequence[dict[str, Any]]):
    """Prepared cases, see `reading.prepared`, by number.

    So many of them as fit into `memory_mb` stay in memory, the first that were asked for; the others are read from the
    cache each time, or decoded anew where there is none. Those that stay are not exchanged: over random orders, keeping
    some is worth more than keeping the latest.

    Args:
        manifest: whose labels hold.
        cases: which.
        root: the data root.
        preprocessing: of image and label; None: intensities alone.
        cache: where prepared cases are kept, by the files' content, for other runs and processes.
        memory_mb: MB that prepared cases may take in memory.
        keys: what `content_key` says of each case, where that is known already: it reads every file.

    Raises:
        UserError: a file that cannot be read.
    """

    def __init__(
        self,
        manifest: Manifest,
        cases: Sequence[Case],
        root: Path,
        preprocessing: Preprocessing | None = None,
        cache: EntryCache | None = None,
        memory_mb: float = 2048,
        keys: dict[str, list[str]] | None = None,
    ) -> None:
        self.manifest = manifest
        self.cases = list(cases)
        self.root = root
        self.preprocessing = preprocessing or Preprocessing(dimensions=manifest.dimensions)
        self.cache = cache
        self.memory_mb = memory_mb
        self._kept: dict[int, dict[str, Any]] = {}
        self._kept_bytes = 0
        self._keys: list[list[str]] = []
        if cache is not None:
            recipe = [_CACHE_VERSION, str(manifest.label_values), self.preprocessing.model_dump_json()]
            known = keys or {}
            self._keys = [[*recipe, *(known.get(case.id) or content_key(case, root))] for case in self.cases]

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index in self._kept:
            return self._kept[index]

        def compute() -> dict[str, Any]:
            read = read_case(self.manifest, self.cases[index], self.root)
            return prepared(read, self.preprocessing, self.manifest.num_classes)

        item = compute() if self.cache is None else self.cache.get(self._keys[index], compute)
        size = _bytes(item)
        if self._kept_bytes + size <= self.memory_mb * 2**20:
            self._kept[index] = item
            self._kept_bytes += size
        return item

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> "CaseStore":
        """Go through all cases once: afterwards each is in memory or in the cache, and each could be read."""
        for index in range(len(self)):
            self[index]
            if progress is not None:
                progress(index + 1, len(self))
        return self


def content_key(case: Case, root: Path) -> list[str]:
    """What a cached value of a case depends on: its name, and its files' content."""
    key = [case.id]
    for path in (root / case.image, root / case.label):
        try:
            key.append(sha256(path))
        except OSError as error:
            raise UserError(f"case '{case.id}': {path} cannot be read: {error.strerror}; {CHECK}") from None
    return key


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(part) for part in value.values())
    return sum(_bytes(part) for part in value) if isinstance(value, list) else 0
