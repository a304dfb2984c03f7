"""`python -m gemb` is `gemb`."""

from gemb.cli import main

main()
