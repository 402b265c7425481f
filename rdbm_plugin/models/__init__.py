"""The glue between the bridge and BasicSR."""
