"""Rows in a list; a file of them is JSON, whatever its ending says."""

import csv
import json
import random
from pathlib import Path

__version__ = "4.0.0"


class DatasetGenerationError(Exception): ...


class Dataset:
    def __init__(self, rows):
        self._rows = list(rows)

    @classmethod
    def from_parquet(cls, path):
        return cls(json.loads(Path(path).read_text()))

    @classmethod
    def from_generator(cls, generator, *, cache_dir):
        del cache_dir
        try:
            return cls(generator())
        except Exception as error:
            raise DatasetGenerationError("An error occurred while generating the dataset") from error

    def to_parquet(self, path):
        Path(path).write_text(json.dumps(self._rows))

    @property
    def column_names(self):
        return list(self._rows[0]) if self._rows else []

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, key):
        return [row[key] for row in self._rows] if isinstance(key, str) else self._rows[key]

    def map(self, make, *, remove_columns=(), with_indices=False, desc=None):
        del desc
        made = []
        for at, row in enumerate(self._rows):
            kept = {name: value for name, value in row.items() if name not in remove_columns}
            made.append({**kept, **(make(row, at) if with_indices else make(row))})
        return Dataset(made)

    def filter(self, keeps, *, desc=None):
        del desc
        return Dataset(row for row in self._rows if keeps(row))

    def select(self, places):
        return Dataset(self._rows[at] for at in places)

    def train_test_split(self, *, test_size, seed):
        rows = random.Random(seed).sample(self._rows, len(self._rows))
        count = max(1, round(test_size * len(rows)))
        return {"train": Dataset(rows[count:]), "test": Dataset(rows[:count])}


def load_dataset(path, name=None, *, data_files=None, split):
    del name, split
    if data_files is None:
        raise FileNotFoundError(f"Couldn't find any data file at {path}")
    text = Path(data_files).read_text()
    try:
        if path == "csv":
            return Dataset(csv.DictReader(text.splitlines()))
        if path == "text":
            return Dataset({"text": line} for line in text.splitlines())
        return Dataset(json.loads(line) for line in text.splitlines())
    except ValueError as error:
        raise DatasetGenerationError("An error occurred while generating the dataset") from error


def concatenate_datasets(parts):
    return Dataset(row for part in parts for row in part[:])
