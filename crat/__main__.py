"""`python -m crat` is `crat`."""

import sys

from crat.cli import main

sys.exit(main())
