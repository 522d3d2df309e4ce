"""Campaigns that do to this package what goes wrong in use, and count what it loses."""
