"""Reading many token sequences with each shared prefix read once."""
