"""What is in a data set, and what is wrong with it, before anybody trains on it."""

from convattn.checks.checking import CheckedData, check_data
from convattn.checks.opening import Place
from convattn.checks.report import DataReport

__all__ = ["CheckedData", "DataReport", "Place", "check_data"]
