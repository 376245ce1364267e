"""Records are sane from birth, loaders are held to their contract, readers name the line that is wrong."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.datasets import Records, load_records, read_adult, read_heart, read_idx, split
from client.tables import ADULT, HEART, HEART_SITES
from common.errors import ConfigError

HERE = __name__
HEART_TABLE = Path(__file__).parents[2] / "scenarios" / "heart" / "heart_disease_uci.csv"
HEADER = "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,slope,ca,thal,num\n"
ROW = "1,63,Male,Cleveland,typical angina,145,233,TRUE,normal,150,FALSE,2.3,flat,0,normal,2\n"
ADULT_ROW = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, ?, "
)


def some_records(n: int = 10) -> Records:
    return Records(
        np.arange(2 * n, dtype=np.float32).reshape(n, 2), np.arange(n) % 3, {"sex": np.array(["f", "m"] * n)[:n]}
    )


@pytest.mark.parametrize(
    ("features", "labels", "groups", "complaint"),
    [
        ([[np.nan], [0]], [0, 1], {}, "NaN"),
        ([[np.inf], [0]], [0, 1], {}, "infinite"),
        ([[1e39], [0]], [0, 1], {}, "infinite"),  # finite as a double, not as a float32
        ([[0.0], [0]], [0, 1, 1], {}, "3 labels but 2 rows of features"),
        ([[0.0], [0]], [0, -1], {}, "0 or more"),
        ([[0.0], [0]], [0, 0.5], {}, "whole"),
        ([[0.0], [0]], [0, 1], {"sex": ["f"]}, "rows of sex"),
        ([0.0, 0], [0, 1], {}, r"\(n, \*inputs\)"),
    ],
)
def test_broken_records_are_never_born(features, labels, groups, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Records(np.array(features), np.array(labels), groups)


@pytest.mark.parametrize("places", [(), (2,), (-1,), (0, 2)])
def test_a_named_feature_lies_in_columns_that_are_there(places):
    with pytest.raises(ConfigError, match="'age' lies in"):
        Records(np.zeros((3, 2)), np.zeros(3, int), columns={"age": places})
    with pytest.raises(ConfigError, match="'age' lies in"):
        Records(np.zeros((3, 2, 2)), np.zeros(3, int), columns={"age": (0,)})


@pytest.mark.parametrize("schema", [HEART, ADULT], ids=["heart", "adult"])
def test_every_column_of_a_table_has_its_own_features_and_all_are_named(schema):
    """Changing a column's value changes its own features and no others."""
    assert [place for places in schema.places.values() for place in places] == list(range(schema.width))
    low = [column.encode([0.0]) for column in schema.columns]
    other = [column.encode([1.0]) for column in schema.columns]
    for number, (name, places) in enumerate(schema.places.items()):
        assert name == schema.columns[number].name
        moved = np.concatenate([other[i] if i == number else part for i, part in enumerate(low)], axis=1)
        assert set(np.flatnonzero(moved[0] != np.concatenate(low, axis=1)[0])) <= set(places)


def test_records_do_not_show_themselves():
    assert repr(some_records()) == "Records()"


def test_a_subset_keeps_rows_together():
    named = Records(some_records().features, some_records().labels, some_records().groups, columns={"both": (0, 1)})
    records = named.subset([7, 2])
    assert records.columns == {"both": (0, 1)}
    assert records.features.tolist() == [[14, 15], [4, 5]]
    assert records.labels.tolist() == [1, 2]
    assert records.groups["sex"].tolist() == ["m", "f"]


def good_loader(site: str, rows: int) -> tuple[list[list[float]], list[int]]:
    return [[float(len(site))]] * rows, [1] * rows


def raising_loader(site: str) -> Records:
    raise OSError("disk on fire")


def nan_loader(site: str) -> tuple[list[list[float]], list[int]]:
    return [[float("nan")]], [0]


@pytest.fixture
def _importable(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "loaders_under_test", __import__("sys").modules[HERE])


@pytest.mark.usefixtures("_importable")
def test_a_loader_gives_one_sites_records():
    records = load_records("loaders_under_test:good_loader", "north", {"rows": 3})
    assert records.features.dtype == np.float32
    assert records.features.tolist() == [[5.0]] * 3


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize(
    ("loader", "options", "cause"),
    [
        ("loaders_under_test:raising_loader", {}, "disk on fire"),
        ("loaders_under_test:nan_loader", {}, "NaN"),
        ("loaders_under_test:good_loader", {"rows": 0}, "got"),
        ("loaders_under_test:good_loader", {"colour": 1}, "colour"),
        ("loaders_under_test:nobody", {}, "nobody"),
        ("no_such_module:load", {}, "no_such_module"),
        ("heart", {}, "package.module:function"),
    ],
)
def test_a_bad_loader_is_named_with_its_cause(loader, options, cause):
    with pytest.raises(ConfigError, match=cause) as caught:
        load_records(loader, "north", options)
    assert loader in caught.value.message


@given(seed=st.integers(0, 2**32), holdout=st.floats(0, 0.5), n=st.integers(20, 60))
def test_a_split_is_complete_disjoint_and_repeatable(seed, holdout, n):
    train, held = split(some_records(n), holdout, seed)
    assert sorted([*train.features[:, 0], *held.features[:, 0]]) == some_records(n).features[:, 0].tolist()
    assert (split(some_records(n), holdout, seed)[1].features == held.features).all()


def test_a_new_record_moves_no_other_between_train_and_holdout():
    held = split(some_records(50), 0.3, 1)[1].features.tolist()
    assert split(some_records(51), 0.3, 1)[1].features.tolist()[: len(held)] == held


def test_split_is_the_same_on_every_machine():
    places = Records(np.zeros((12, 1)), np.arange(12))
    assert split(places, 0.3, 0)[1].labels.tolist() == [2, 4, 6, 10]


@given(st.integers(0, 29), st.integers(0, 100))
def test_a_record_less_moves_no_other_record(gone, seed):
    """Else one record's presence would show in what all others are used for, which no accounting covers."""
    records = some_records(30)
    left = records.subset(np.arange(30) != gone)
    for whole, part in zip(split(records, 0.4, seed), split(left, 0.4, seed), strict=True):
        kept = [row for row in whole.features.tolist() if row != records.features[gone].tolist()]
        assert part.features.tolist() == kept


def test_the_held_out_share_is_as_asked():
    """10,000 records, false alarm below 1e-9."""
    records = Records(np.random.default_rng().normal(size=(10_000, 2)), np.zeros(10_000, np.int64))
    assert abs(len(split(records, 0.3, 5)[1]) - 3000) < 6.1 * (10_000 * 0.21) ** 0.5


def test_no_holdout_keeps_everything_for_training():
    train, held = split(some_records(), 0.0, 0)
    assert (len(train), len(held)) == (10, 0)


def test_reserved_records_are_the_holdout_whatever_the_share():
    records = Records(np.zeros((4, 1)), np.arange(4), {}, np.array([False, True, False, True]))
    for holdout in (0.0, 0.9):
        train, held = split(records, holdout, 0)
        assert (train.labels.tolist(), held.labels.tolist()) == ([0, 2], [1, 3])


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_an_impossible_holdout_is_refused(holdout):
    with pytest.raises(ConfigError, match="holdout"):
        split(some_records(), holdout, 0)


def test_heart_has_920_patients_of_four_hospitals():
    sizes = {site: len(read_heart(HEART_TABLE, site)) for site in HEART_SITES}
    assert sizes == {"cleveland": 304, "hungary": 293, "switzerland": 123, "va-long-beach": 200}
    everybody = read_heart(HEART_TABLE)
    assert len(everybody) == 920
    assert int(everybody.labels.sum()) == 509
    assert set(everybody.groups["sex"]) == {"Female", "Male"}


def test_no_patient_is_longer_than_the_bound():
    assert np.linalg.norm(read_heart(HEART_TABLE).features, axis=1).max() <= 1


def heart_features(tmp_path: Path, row: str) -> dict[str, list[float]]:
    (tmp_path / "t.csv").write_text(HEADER + row)
    vector = read_heart(tmp_path / "t.csv").features[0] * np.sqrt(len(HEART.columns))
    ends = np.cumsum([column.encode([0]).shape[1] for column in HEART.columns])
    return {c.name: np.round(b, 4).tolist() for c, b in zip(HEART.columns, np.split(vector, ends), strict=False)}


def test_a_patients_encoding_depends_on_that_patient_only(tmp_path):
    features = heart_features(tmp_path, ROW)
    assert features["age"] == [pytest.approx(2 * 43 / 60 - 1, abs=1e-4), 0]
    assert features["cp"] == [1, 0, 0, 0, 0]
    (tmp_path / "t.csv").write_text(HEADER + ROW + ROW.replace("63", "20").replace("233", "600"))
    both = read_heart(tmp_path / "t.csv").features
    (tmp_path / "t.csv").write_text(HEADER + ROW)
    assert (both[0] == read_heart(tmp_path / "t.csv").features[0]).all()


@pytest.mark.parametrize("zero", ["0", "0.0", ""])
def test_a_cholesterol_of_zero_is_missing(tmp_path, zero):
    assert heart_features(tmp_path, ROW.replace(",233,", f",{zero},"))["chol"] == [0, 1]


def test_a_value_out_of_range_is_clamped(tmp_path):
    assert heart_features(tmp_path, ROW.replace(",233,", ",5000,"))["chol"] == [1, 0]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ROW.replace("233", "high"), "line 3, column chol: not a finite number"),
        (ROW.replace("233", "nan"), "line 3, column chol: not a finite number"),
        (ROW.replace("Male", "male"), "line 3, column sex: not one of Female, Male"),
        (ROW.replace(",2\n", ",5\n"), "line 3, column num"),
        (ROW.replace(",2\n", ",\n"), "line 3, column num"),
        (ROW.replace(",2\n", "\n"), "line 3: 15 columns, not 16"),
        ('1,"63\n', "not CSV"),
    ],
)
def test_a_broken_row_is_named_without_its_value(tmp_path, row, complaint):
    (tmp_path / "t.csv").write_text(HEADER + ROW + row)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_heart(tmp_path / "t.csv")
    assert "t.csv" in caught.value.message
    assert "high" not in caught.value.message


def test_missing_column_file_or_hospital_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text((HEADER + ROW).replace("chol", "colour"))
    with pytest.raises(ConfigError, match="no column chol"):
        read_heart(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="nowhere"):
        read_heart(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="berlin"):
        read_heart(HEART_TABLE, "berlin")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ConfigError, match="no records"):
        read_heart(tmp_path / "t.csv")


def test_adult_reads_both_of_its_files_dialects(tmp_path):
    (tmp_path / "adult.data").write_text(f"{ADULT_ROW}>50K\n{ADULT_ROW}<=50K\n\n")
    with gzip.open(tmp_path / "adult.test.gz", "wt") as file:
        file.write(f"|1x3 Cross validator\n{ADULT_ROW}>50K.\n")
    train, test = read_adult(tmp_path / "adult.data"), read_adult(tmp_path / "adult.test.gz", reserved=True)
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0], [1])
    assert (train.features[0] == test.features[0]).all()
    assert train.features.shape == (2, ADULT.width)
    assert (train.reserved.any(), test.reserved.all()) == (False, True)
    assert train.groups["race"].tolist() == ["White", "White"]


IMAGES = b"\0\0\x08\x03" + struct.pack(">III", 2, 1, 3) + bytes(range(6))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_images_plain_and_gzipped(tmp_path, pack):
    (tmp_path / "f").write_bytes(pack(IMAGES))
    assert read_idx(tmp_path / "f").tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


@pytest.mark.parametrize("data", [b"", IMAGES[:3], IMAGES[:7], IMAGES[:-1], IMAGES + b"x", b"\0\0\x0d" + IMAGES[3:]])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_broken_idx_file_is_refused(tmp_path, data, pack):
    (tmp_path / "f").write_bytes(pack(data))
    with pytest.raises(ConfigError, match="f, byte"):
        read_idx(tmp_path / "f")


@pytest.mark.parametrize("cut", [5, 20, -1])
def test_truncated_gzip_is_refused(tmp_path, cut):
    (tmp_path / "f").write_bytes(gzip.compress(IMAGES)[:cut])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_idx(tmp_path / "f")
