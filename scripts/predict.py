"""`jmceln predict` as a file, for launchers that need a file, and for a clone that is not installed."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jmceln import main


if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
