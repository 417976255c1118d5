"""docs/formats.md agrees with the code it describes."""

import importlib.util
import re
from pathlib import Path

from quant.format import FORMATS
from quant.iq import LEVELS

REPO = Path(__file__).resolve().parents[2]


def load_script():
    spec = importlib.util.spec_from_file_location("format_tables", REPO / "scripts" / "format_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_part_is_current():
    script = load_script()
    page = script.PAGE.read_text()
    assert page == script.page_with(page, script.generated()), "run python scripts/format_tables.py"
    assert page.count(script.BEGIN) == page.count(script.END) == 1


def test_generated_part_shows_real_offsets():
    drawing = load_script().layout_drawing()
    assert "Q4_K   |  0 d: float16 |  2 dmin: float16 |  4 scales: 12 bytes | 16 qs: 128 bytes | 144 end" in drawing
    assert "Q6_K   |  0 ql: 128 bytes |128 qh: 64 bytes |192 scales: 16 int8 |208 d: float16 | 210 end" in drawing


def test_every_block_format_has_its_formula_and_levels_are_right():
    page = (REPO / "docs" / "formats.md").read_text()
    for fmt in FORMATS.values():
        if fmt.block_elements > 1:
            assert re.search(rf"^\| {fmt.name} \| `", page, re.MULTILINE), fmt.name
    assert " ".join(map(str, LEVELS)) in page
