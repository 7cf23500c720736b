"""The system's resolver as a fact that is kept, and the exit's own name.

setting             what a setting of the system's resolver can do, whatever it is set by
left_alone          nothing is set, and why names work nonetheless
bootstrap           resolves the exit's name past the tunnel, through an opening of the filter
known_addresses     the last addresses of that name, on the disk
"""
