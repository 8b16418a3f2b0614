"""A finished run -> the Hub."""
