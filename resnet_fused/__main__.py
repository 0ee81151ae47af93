"""Entry point of ``python -m resnet_fused``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
