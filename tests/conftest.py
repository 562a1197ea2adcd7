import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests run side by side; networks this small only lose by more threads."""
    torch.set_num_threads(1)
