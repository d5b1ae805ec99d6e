"""What Python and C++ both say of products that are left to torch, and neither asks the other."""

import re
from pathlib import Path

from dmt_kernels.ops import kept_rows

SOURCE = Path(__file__).parents[2] / "csrc" / "ops" / "tower_pool_cuda.cu"


def test_rows_are_kept_where_products_are_left_to_torch():
    assert re.findall(r"kLeastLibraryRows = (\d+);", SOURCE.read_text()) == [str(kept_rows._LEAST_ROWS)]
