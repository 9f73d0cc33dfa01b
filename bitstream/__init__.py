"""Container, CDF tables, symbol coder and its engines. Knows no network; FORMAT.md is the authority."""
