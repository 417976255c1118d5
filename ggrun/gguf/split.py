"""Models cut into several files: which files belong together, and whether they are all there.

Knows the naming pattern and the `split.*` keys; must not know how a header is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ggrun.gguf.error import GgufError
from ggrun.gguf.metadata import Value

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_KEY_NUMBER, _KEY_COUNT, _KEY_TENSORS = "split.no", "split.count", "split.tensors.count"


def part_paths(path: str, metadata: Mapping[str, Value]) -> tuple[str, ...]:
    """The paths of all files of the model that the file at `path`, with this metadata, belongs to; one when it was never split.

    GgufError when the file's name and its keys disagree.
    """
    count = _whole(path, metadata, _KEY_COUNT, 1)
    if count <= 1:
        return (path,)
    number = _whole(path, metadata, _KEY_NUMBER, -1)
    if not 0 <= number < count:
        raise GgufError(f"{path}: metadata key '{_KEY_NUMBER}' is {number}, which is not one of the {count} files of the model")
    match = _NAME.fullmatch(path)
    example = f"NAME-{number + 1:05d}-of-{count:05d}.gguf"
    if not match:
        raise GgufError(f"{path} is file {number + 1} of a model split into {count}; name it {example} so that the others can be found")
    if (int(match["number"]), int(match["count"])) != (number + 1, count):
        raise GgufError(f"{path}: its metadata ('{_KEY_NUMBER}', '{_KEY_COUNT}') calls this file {example}; its name says otherwise")
    return tuple(f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count))


def check_part(path: str, index: int, count: int, metadata: Mapping[str, Value]) -> None:
    """GgufError unless the file at `path` says that it is file `index` (from 0) of `count`."""
    found = (_whole(path, metadata, _KEY_NUMBER, -1), _whole(path, metadata, _KEY_COUNT, -1))
    if found != (index, count):
        raise GgufError(
            f"{path}: '{_KEY_NUMBER}' is {found[0]} and '{_KEY_COUNT}' {found[1]}, expected {index} and {count}: "
            "the files are not of one model"
        )


def check_tensor_count(path: str, n_tensors: int, metadata: Mapping[str, Value]) -> None:
    """GgufError unless all files together hold as many tensors as the metadata of one of them says."""
    expected = _whole(path, metadata, _KEY_TENSORS, n_tensors)
    if expected != n_tensors:
        raise GgufError(f"{path}: metadata key '{_KEY_TENSORS}' is {expected}, but the files of the model hold {n_tensors} tensors")


def _whole(path: str, metadata: Mapping[str, Value], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise GgufError(f"{path}: metadata key '{key}' must be a whole number")
    return value
