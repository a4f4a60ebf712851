"""S3's predictor by a confusion matrix: what is drawn, and which files are refused."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine.policies.s3 import S3, read_confusion
from plimsoll.engine.requests import Requests

CONFIG = EngineConfig(num_blocks=1000, max_model_len=40)
WIDTH = 10
"""Tokens of a bucket: 40 tokens in 4 of them."""
MATRIX = [[0.7, 0.3, 0.0, 0.0], [0.1, 0.6, 0.2, 0.1], [0.0, 0.25, 0.25, 0.5], [0.5, 0.0, 0.0, 0.5]]


def written(folder: Path, text: str) -> str:
    path = folder / "confusion.csv"
    path.write_text(text)
    return str(path)


def rows(matrix: list[list[float]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in matrix)


def requests(num: int, predicted: list[int] | None = None) -> Requests:
    output = ints(1 + np.arange(num) * 7 % 36)
    told = None if predicted is None else ints(predicted)
    prompt = ints(np.ones(num))
    load = Workload(
        arrival_s=floats(np.zeros(num)), prompt_tokens=prompt, output_tokens=output, predicted_output_tokens=told
    )
    return Requests(load, 40)


def by_hand(true_buckets: list[int], matrix: list[list[float]], seed: int) -> list[int]:
    """Upper ends of the predicted buckets: one draw a request, in order, along the row of its own bucket."""
    rng = np.random.default_rng(seed)
    found = []
    for true in true_buckets:
        sums = list(accumulate(share / sum(matrix[true]) for share in matrix[true]))
        found.append((min(bisect_right(sums, rng.random()), len(sums) - 1) + 1) * WIDTH)
    return found


@pytest.mark.parametrize("seed", [0, 7])
def test_each_request_draws_from_the_row_of_its_own_bucket(tmp_path: Path, seed: int) -> None:
    policy = S3(CONFIG, num_buckets=4, confusion=written(tmp_path, rows(MATRIX)), predictor_seed=seed)
    asked = requests(400)
    true = [(tokens - 1) // WIDTH for tokens in asked.output]
    assert set(true) == {0, 1, 2, 3}
    assert policy.predicted(asked) == by_hand(true, MATRIX, seed)


def test_the_shares_of_a_row_come_out(tmp_path: Path) -> None:
    policy = S3(CONFIG, num_buckets=4, confusion=written(tmp_path, rows(MATRIX)))
    asked = requests(36 * 400)
    upper = np.array(policy.predicted(asked)) // WIDTH - 1
    true = (np.array(asked.output) - 1) // WIDTH
    for bucket, row in enumerate(MATRIX):
        seen = np.bincount(upper[true == bucket], minlength=4) / (true == bucket).sum()
        assert seen == pytest.approx(row, abs=0.03)
        assert (seen[np.array(row) == 0] == 0).all(), "what has no share never comes"


def test_a_certain_predictor_is_the_exact_one(tmp_path: Path) -> None:
    asked = requests(100)
    certain = S3(CONFIG, num_buckets=4, confusion=written(tmp_path, rows(np.eye(4).tolist())))
    assert certain.predicted(asked) == S3(CONFIG, num_buckets=4, accuracy=1.0).predicted(requests(100))


def test_what_the_workload_predicts_goes_first(tmp_path: Path) -> None:
    asked = requests(3, predicted=[1, 11, 40])
    policy = S3(CONFIG, num_buckets=4, confusion=written(tmp_path, rows(MATRIX)))
    assert policy.predicted(asked) == [10, 20, 40]


def test_rounded_shares_are_made_to_sum_to_one(tmp_path: Path) -> None:
    matrix = read_confusion(written(tmp_path, "# true by predicted\n\n0.3334,0.6662\n 0.5 , 0.5\n"), 2)
    assert matrix.sum(axis=1).tolist() == [1.0, 1.0]
    assert matrix[0, 0] == 0.3334 / (0.3334 + 0.6662)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.5,0.5\n0.2,0.7\n", r"line 2: .*with the sum 1"),
        ("30,70\n0,100\n", r"line 1: .*shares from 0 to 1"),
        ("1.5,-0.5\n0,1\n", r"line 1: .*shares from 0 to 1"),
        ("nan,1\n0,1\n", r"line 1: "),
        ("short,long\n0,1\n", r"line 1: 'short,long'.*write shares"),
        ("1,0\n0,1,0\n", r"line 2: '3 values'.*or give num_buckets=3"),
        ("1,0\n", r"1 rows.*write 2 rows"),
        ("1,0\n0,1\n0,1\n", r"3 rows.*write 2 rows"),
        ("", r"0 rows"),
    ],
)
def test_what_is_no_probability_matrix_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        S3(CONFIG, num_buckets=2, confusion=written(tmp_path, text))
    assert "confusion.csv" in str(caught.value)


def test_a_file_that_cannot_be_read_and_two_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a CSV file that can be read"):
        S3(CONFIG, confusion=str(tmp_path / "nowhere.csv"))
    with pytest.raises(InputError, match="give a CSV file that can be read"):
        S3(CONFIG, confusion=str(tmp_path))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UnicodeDecodeError"):
        S3(CONFIG, confusion=str(tmp_path / "bytes.csv"))
    with pytest.raises(InputError, match=r"accuracy: 0.5.*the confusion matrix says"):
        S3(CONFIG, num_buckets=4, accuracy=0.5, confusion=written(tmp_path, rows(MATRIX)))
