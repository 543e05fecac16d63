"""Both papers' tables, row by row: what is verified here, and what a training would take."""
