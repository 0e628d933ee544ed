"""From notebooks to the published book: execute, stage, build, check, and only then put the new site in place."""

from sslref.publish.build import book

__all__ = ["book"]
