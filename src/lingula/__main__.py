"""`python -m lingula` is the command line."""

from lingula.cli import main

main()
