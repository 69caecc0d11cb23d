"""Started as a file, by the app's interpreter, which need not have this package: `python worker/__main__.py R W`."""

import os
import sys

if __name__ == "__main__":
    # The script's own folder is first in sys.path, and would let `import messages` find ours: it makes room for
    # the package's parent, only until our own modules are imported.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from alembic_entrypoint.worker import connections, failures, main

    _ours = sys.path.pop(0)
    # What is imported later (environment, transactions) is found through the package, wherever sys.path points.
    assert connections
    assert failures
    main.main(int(sys.argv[1]), int(sys.argv[2]))
