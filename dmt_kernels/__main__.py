"""``python -m dmt_kernels``."""

import sys

from dmt_kernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
