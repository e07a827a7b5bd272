"""Get started: write a new project, check the machine, complete commands in the shell."""
