"""dial."""
