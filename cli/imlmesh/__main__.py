"""`python -m imlmesh`: the same as the script `imlmesh`."""

from imlmesh.main import main

if __name__ == "__main__":
    main()
