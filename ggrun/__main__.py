"""`python -m ggrun` is the command `ggrun`."""

from ggrun.cli.app import main

if __name__ == "__main__":
    main()
