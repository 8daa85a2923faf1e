"""What every sparse dictionary shares: its form, what training minimises, and training itself."""
