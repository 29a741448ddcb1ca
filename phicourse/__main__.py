"""`python -m phicourse` is `phicourse`."""

from phicourse.cli import main

main()
