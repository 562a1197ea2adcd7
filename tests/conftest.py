import pytest
import torch
from forks import ForkedCell
from hypothesis import settings

# How long an example takes says how busy the machine is, nothing of what is tested.
settings.register_profile("brickwork", deadline=None)
settings.load_profile("brickwork")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests run side by side; networks this small only lose by more threads."""
    torch.set_num_threads(1)


@pytest.fixture
def forked_cells(monkeypatch):
    """Cells of studies in forked processes, which have everything imported already; their class."""
    monkeypatch.setattr("brickwork.eval.studies.core.processes.Popen", ForkedCell)
    return ForkedCell
