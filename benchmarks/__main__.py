"""`python -m benchmarks`: see benchmarks.run.

The processes that make load import this file again as their main module, so it imports nothing before it is
asked to run.
"""

import sys

if __name__ == "__main__":
    from benchmarks.run import main

    sys.exit(main())
