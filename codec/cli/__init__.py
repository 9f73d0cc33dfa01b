"""The command line: ``main`` registers the commands that its neighbours define; ``files`` and ``options`` serve them all."""
