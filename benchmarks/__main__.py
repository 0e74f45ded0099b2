"""`python -m benchmarks`: see benchmarks.run.

The load-making processes import this file again as their main module, so it imports nothing early.
"""

import sys

if __name__ == "__main__":
    from benchmarks.run import main

    sys.exit(main())
