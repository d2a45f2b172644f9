"""Who measures: one placed model and its objectives, in this process or in actors of Ray."""
