"""Named metric protocols."""
