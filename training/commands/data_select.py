"""Write the rows of a data set whose columns have the given values as a Parquet file.

example:
  brickwork data select data/emoji/train.parquet --output fluent.parquet --where style=fluent \\
      --where 'label=Smileys & Emotion,Animals & Nature,Food & Drink'
"""

import argparse
from pathlib import Path

from brickwork import options
from brickwork.errors import advice
from brickwork.eval.sets.tables import as_dataset
from brickwork.files import check_file, write_file
from brickwork.training.data.images import load_table

MADE_BY, MAKER = b"brickwork.made_by", b"brickwork data select"  # among a file's metadata
ROWS_PER_GROUP = 500


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="image folder, Parquet file, or the name of a data set on the hub")
    parser.add_argument("--split", default="train", help="split of a data set from the hub (default: train)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Parquet file to write")
    parser.add_argument(
        "--where",
        action="append",
        required=True,
        metavar="COLUMN=VALUE[,VALUE…]",
        help="keep rows with one of these values; several conditions must all hold",
    )
    options.add_common(parser, "--overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file and say how many rows it has."""
    count = select_rows(args.source, args.output, args.where, args.split, args.overwrite)
    print(f"{args.output}: {count:,} rows")
    return 0


def select_rows(source: str, output: Path, where: list[str], split: str = "train", overwrite: bool = False) -> int:
    """Write the rows that meet every condition.

    Args:
        source: a data set (see `load_table`).
        output: a name that ends in `.parquet`.
        where: conditions such as `style=fluent`; values of class labels are their names.
        split: of a data set from the hub.
        overwrite: replace an earlier file of this command.

    Returns:
        Their number.

    Raises:
        ValueError: for conditions that are none, columns or values that are not there, or an output that exists.
    """
    if output.suffix != ".parquet":
        raise ValueError(f"`output` is {str(output)!r}; give a name that ends in .parquet.")
    check_file(output, _is_ours, overwrite=overwrite)
    table = load_table(source, split)
    rows = range(len(table))
    for condition in where:
        column, separator, listed = condition.partition("=")
        if not separator or column not in table.column_names:
            raise ValueError(f"`--where` is {condition!r}, not COLUMN=VALUE; {advice(column, table.column_names)}")
        names = getattr(table.features.get(column), "names", None)  # of class labels
        values = [names[value] if names else str(value) for value in table[column]]
        wanted = set(listed.split(","))
        if missing := sorted(wanted - set(values)):
            fix = advice(missing[0], sorted(set(values)), limit=12)
            raise ValueError(f"`--where` is {condition!r}, but no row has {missing[0]!r}; {fix}")
        rows = [row for row in rows if values[row] in wanted]
    if not rows:
        raise ValueError(f"No row meets all of {where}; leave one out.")
    write_file(output, lambda part: _write(as_dataset(table.select(rows)), part))
    return len(rows)


def _write(rows, path: Path) -> None:
    """A `datasets.Dataset` as a Parquet file that says who made it."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, rows.features.arrow_schema) as writer:
        writer.add_key_value_metadata({MADE_BY: MAKER})
        for batch in rows.with_format("arrow").iter(ROWS_PER_GROUP):
            writer.write_table(batch)


def _is_ours(path: Path) -> bool:
    import pyarrow.parquet as pq

    return (pq.read_metadata(path).metadata or {}).get(MADE_BY) == MAKER
