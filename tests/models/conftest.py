"""The toy judge of the tests of evaluation."""

from tests.evaluation.conftest import judge, toy_data, trained

__all__ = ["judge", "toy_data", "trained"]
