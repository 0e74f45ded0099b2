"""`python -m embedshare.settings docs/settings.md` writes that file."""

import sys
from pathlib import Path

from embedshare.settings.document import markdown

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf8")
