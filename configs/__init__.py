"""Values only: YAML files that fill the dataclasses of the package."""
