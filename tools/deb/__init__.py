"""The Debian package: `python -m tools.deb`, which is what `make deb` calls."""
