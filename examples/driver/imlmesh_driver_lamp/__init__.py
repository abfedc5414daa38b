"""The IML module `lamp` for nodes of imlmesh. Importing this package opens no device."""
