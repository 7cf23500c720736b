"""System-wide mode on macOS: utun device, routes, pf, and the resolver of the system."""
