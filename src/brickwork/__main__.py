"""`python -m brickwork`, the same as `brickwork`."""

import sys

from brickwork.cli import main

sys.exit(main())
