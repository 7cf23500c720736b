"""What ends the building of a package, in one sentence."""


class PackageError(Exception):
    """The package cannot be built here; the text says why, and what to do."""
