"""RDBM under mmengine's Runner. Only :mod:`rdbm_plugin.mmengine.weights` works without mmengine."""
