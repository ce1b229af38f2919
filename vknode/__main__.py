"""`python -m vknode` is `vknode`."""

from vknode.cli.main import main

main(prog_name="vknode")
