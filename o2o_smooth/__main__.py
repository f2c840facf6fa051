"""python -m o2o_smooth: the command line."""

import sys

from o2o_smooth.cli import main

sys.exit(main())
