"""What stays makes up for what goes: targets, elimination, refits."""
