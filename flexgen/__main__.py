"""`python -m flexgen` is `flexgen`."""

from flexgen.cli import main

main()
