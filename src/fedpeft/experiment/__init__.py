"""The experiment file and the site file: schemas, reading, checks, defaults, names to builders."""
