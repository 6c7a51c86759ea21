"""`python -m flexgen` is `flexgen`."""

from flexgen.cli import main

if __name__ == "__main__":
    main()
