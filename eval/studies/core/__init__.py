"""What every study shares: cells, resume, child processes, statistics, the report. Quick to import, without torch."""

from brickwork.eval.studies.core.cells import RESULT, Cell, Stopped, StudyFolder, folder_name
from brickwork.eval.studies.core.processes import last_words, run_cells
from brickwork.eval.studies.core.statistics import Difference, compare_pairs, kendall_tau, mean_and_spread
from brickwork.eval.studies.core.study import Study, run_study, table_of, write_report

__all__ = [
    "RESULT", "Cell", "Difference", "Stopped", "Study", "StudyFolder", "compare_pairs", "folder_name", "kendall_tau",
    "last_words", "mean_and_spread", "run_cells", "run_study", "table_of", "write_report",
]  # fmt: skip
