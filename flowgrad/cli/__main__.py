"""``python -m flowgrad.cli`` is the same as ``flowgrad``."""

from . import main

if __name__ == "__main__":
    main(prog_name="flowgrad")
