import sys

from xtra_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
