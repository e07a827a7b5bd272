"""What one uses in the first hour: a project of one's own, a check of the machine, completion in the shell."""
