"""The docs' table of methods is the registry's."""

from contract import table
from contract.registry import METHODS


def test_the_table_in_the_docs_is_up_to_date():
    text = table.PAGE.read_text("utf-8")
    assert table.START + table.table() + table.END in text, "run python tests/contract/table.py"


def test_every_method_has_its_costs():
    assert set(table.COST) == set(METHODS)
