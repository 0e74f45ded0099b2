"""Run the model server alone: `python start_embedding_server.py`.

Settings come from the environment and from `.env`; Ctrl-C finishes what is running and ends it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from modelServer import main

if __name__ == "__main__":
    sys.exit(main())
