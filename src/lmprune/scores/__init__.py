"""How much a unit matters: statistics at the seam, the criteria that read them, curvature, redundancy."""
