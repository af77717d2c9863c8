"""`elkimg studio`: a page for people who would rather look than read, and the backend behind it."""
