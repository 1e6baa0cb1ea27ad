"""What was asked, and what it will take: settings, question, plan, resources, run folder."""
