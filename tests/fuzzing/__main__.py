"""``python tests/fuzzing TARGET FILE``: one input again, for instance one that a finding saved."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from fuzzing.worker import again

    with tempfile.TemporaryDirectory() as folder:
        print(again(sys.argv[1], Path(sys.argv[2]), Path(folder)))
