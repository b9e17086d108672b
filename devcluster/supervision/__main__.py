"""`python -m devcluster.supervision`: started by devcluster itself, never by hand."""

import sys

from .supervisor import main

sys.exit(main())
