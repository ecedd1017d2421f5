"""Processes that outlive a command. Nothing here knows images."""
