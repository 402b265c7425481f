"""RDBM under mmengine's Runner. Needs mmengine."""
