"""The command line: one thin file a command, and the application that runs them."""

from flexgen.cli.app import COMMANDS, explain, main

__all__ = ["COMMANDS", "explain", "main"]
