"""A headless browser that loads a page as a person's would, and shows what it came to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOW_TO_INSTALL = (
    f"no browser: none of {', '.join(BROWSERS)} is on the PATH. On Debian or Ubuntu: "
    "apt-get install chromium (or chromium-browser)"
)
LOAD_SECONDS = 180


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Browser:
    """One profile, so that its cache serves each page after the first."""

    def __init__(self, program: str, folder: Path) -> None:
        self._folder = folder
        self._command = [program, "--headless", "--no-sandbox", "--disable-gpu"]
        self._command += ["--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
        self._command += ["--disable-background-networking", "--disable-component-update"]
        self._command += [f"--user-data-dir={folder / 'profile'}"]

    def load(
        self, url: str, path: Path | None = None, size: str = "1500,1300", settle_seconds: float = 2
    ) -> str:
        """Load a page in a window, and wait until its scripts have come to rest.

        Args:
            url: the page.
            path: where to save what the window shows, a PNG; None saves nothing.
            size: of the window, ``width,height``.
            settle_seconds: of the page's own time, which runs faster than the clock while nothing
                is under way.

        Returns:
            The document's HTML after its scripts ran.
        """
        options = [f"--virtual-time-budget={settle_seconds * 1000:.0f}", f"--window-size={size}"]
        options += [f"--screenshot={path}"] if path else []
        done = subprocess.run(
            [*self._command, *options, "--dump-dom", url],
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS,
            check=True,
            env={**os.environ, "HOME": str(self._folder)},
        )
        return done.stdout
