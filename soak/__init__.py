"""Campaigns that do to this package what goes wrong in use, and count what it loses."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
