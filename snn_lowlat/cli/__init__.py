"""What only the command line needs: its config, the course of a run, and what it answers."""
