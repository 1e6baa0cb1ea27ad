"""A sweep before it starts: its settings, question, plan, resources and run folder."""
