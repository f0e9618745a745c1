"""`python -m luban`."""

from luban.cli.main import main

main()
