"""The commands of the command line, a function each; `cli` gives them their names."""
