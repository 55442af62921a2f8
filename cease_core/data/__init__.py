"""Cases: scans with their reference masks, split so that no patient is on two sides."""

from cease_core.data.cases import Case, find_cases, load_case, split_cases

__all__ = ["Case", "find_cases", "load_case", "split_cases"]
