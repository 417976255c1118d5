"""The command `ggrun`, also as `python -m ggrun`. Ctrl-C while the command line is still being imported ends as quietly as later."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Import the command line and run it; exit code 130 when interrupted before that is done."""
    try:
        from ggrun.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
