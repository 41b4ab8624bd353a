"""Run the command line as `python -m seedbed`."""

import sys

from seedbed.cli import main

sys.exit(main())
