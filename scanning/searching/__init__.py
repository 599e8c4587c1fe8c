"""Searches over strings of tokens: all of them alone, the best of them grown, and some by gradient."""
