"""``python -m flowgrad`` is the same as ``flowgrad``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="flowgrad")
