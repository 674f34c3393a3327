"""The method of the package beside it, for `--plugin`."""

import sys
from pathlib import Path

import lmprune

sys.path.insert(0, str(Path(__file__).parent))
from lmprune_loudest import LOUDEST

lmprune.register_method(LOUDEST)
