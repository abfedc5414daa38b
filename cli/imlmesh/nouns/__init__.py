"""One file per noun of the command line; `main` lists them and loads the one that is asked for."""
