"""Which replica takes a token: by its number, by fixed shares, by shares of the batch itself, near what it visits."""
