"""Whatever the writer accepts, the reader gives back: metadata, descriptions and bytes, in every load mode."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.gguf import GgufWriter, MetadataArray, open_gguf
from quant.format import FORMATS

TEXT = st.text(max_size=40)
FLOAT32 = st.floats(width=32, allow_nan=False)
INTEGER = st.integers(-(1 << 63), (1 << 64) - 1)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def lists(element: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
    return st.lists(element, max_size=20)


SMALL = st.integers(-(1 << 31), (1 << 31) - 1)
SCALAR = st.one_of(st.booleans(), INTEGER, FLOAT32, TEXT)
ARRAY = st.one_of(lists(st.booleans()), lists(SMALL), lists(FLOAT32), lists(TEXT), lists(lists(TEXT)))
TENSOR = st.tuples(st.sampled_from(sorted(FORMATS)), st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3), st.integers(0, 255))


def plain(value: object) -> object:
    return [plain(v) for v in value] if isinstance(value, MetadataArray) else value


@given(
    metadata=st.dictionaries(NAME.filter(lambda key: not key.startswith(("general.", "split."))), SCALAR | ARRAY, max_size=8),
    tensors=st.dictionaries(NAME, TENSOR, max_size=5),
    alignment=st.sampled_from([1, 32, 64, 4096]),
    mode=st.sampled_from(["mmap", "none"]),
)
@settings(max_examples=300)
def test_what_is_written_is_read(
    metadata: dict[str, object], tensors: dict[str, tuple[int, int, list[int], int]], alignment: int, mode: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = GgufWriter(path, alignment)
        for key, value in metadata.items():
            writer.add(key, value)
        data: dict[str, bytes] = {}
        for name, (type_id, n_blocks, rest, seed) in tensors.items():
            fmt = FORMATS[type_id]
            dims = [n_blocks * fmt.block_elements, *rest]
            raw = np.random.default_rng(seed).bytes(fmt.row_bytes(dims[0]) * int(np.prod(rest, initial=1)))
            writer.add_tensor(name, dims, fmt, [raw[i : i + 100] for i in range(0, len(raw), 100)])
            data[name] = raw
        writer.write()
        with open_gguf(path, mode) as file:
            assert {key: plain(v) for key, v in file.metadata.items() if key != "general.alignment"} == metadata
            assert {name: tensor.raw.tobytes() for name, tensor in file.tensors.items()} == data
            assert file.alignment == alignment
            for name, tensor in file.tensors.items():
                assert (tensor.format.id, list(tensor.dims[1:])) == (tensors[name][0], tensors[name][2])
                assert tensor.offset % alignment == 0
