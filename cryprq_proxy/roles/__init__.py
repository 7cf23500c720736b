"""The two roles of the program, client and exit, and what they share."""
