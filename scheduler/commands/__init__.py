"""One file a command of the command line; imported when the command is called."""
