"""`python -m cryprq_proxy`: the same as the command `cryprq-proxy`."""

from .cli import main

if __name__ == "__main__":
    main()
