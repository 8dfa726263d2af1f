import pytest
import torch

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks.tables import Table


@pytest.mark.parametrize("expected", [1, 5, 100])
def test_rows_come_back_in_order(expected):
    table, rows = Table(), torch.arange(18.0).reshape(9, 2)
    for part in rows.split(2):
        table.append(part, expected=expected)
    assert torch.equal(table.rows(), rows)


def test_another_shape():
    table = Table()
    table.append(torch.ones(2, 3), expected=4)
    with pytest.raises(DataError, match=r"shape \[4\] after samples of shape \[3\]"):
        table.append(torch.ones(2, 4), expected=4)
