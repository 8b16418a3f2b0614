"""Why a film is not used, in the words of the manifest: for who reads one, and has no films to look at."""

UNREADABLE = "unreadable"
COPIES = "copy"
CONFLICT = "copies with different labels"
PATIENT = "patient of another split"
