"""The command line: one file per command, none of which imports torch before its arguments are read and found good."""
