"""Publication of a finished run on the Hub."""
