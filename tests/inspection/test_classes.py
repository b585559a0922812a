import numpy as np
import pytest

from xtra_jax.config import load
from xtra_jax.data.decode import BadImage
from xtra_jax.inspection.canvas import BAR
from xtra_jax.inspection.captions import about_classes, classes_line
from xtra_jax.inspection.classes import ClassCounts, count_classes, draw_histogram
from xtra_jax.inspection.inputs import open_inputs

DATA = load("configs/demo.py").data


class Labels:
    """A source that knows nothing but labels."""

    def __init__(self, labels, classes):
        self._labels = labels
        self.num_classes = classes
        self.class_names = tuple(f"class {number}" for number in range(classes or 0))

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        if self._labels[index] is None:
            raise BadImage("cannot be read")
        return {"image": b"", "label": self._labels[index], "key": str(index)}


def test_every_label_of_a_folder_is_counted(pictures, pretraining):
    counts = count_classes(open_inputs(pretraining(pictures)).train, seconds=10)
    assert dict(counts.ranked()) == {"red": 10, "green": 6, "blue": 4}
    assert counts.complete and counts.looked_at == counts.records == 20
    assert classes_line(counts, DATA) == "3: 10 images of red down to 4 of blue"


def test_above_the_picture_the_number_is_said_to_be_of_classes():
    said = about_classes(counted([7, 9]), DATA)
    assert said == ["2 classes: 9 images of class 1 down to 7 of class 0"]
    assert about_classes(counted([7]), DATA)[0].startswith("1 class: ")


def test_counts_of_a_mixture_in_shares_are_said_to_be_of_records():
    mixed = load("configs/demo.py", {"data.mixture": "3,1"}).data
    said = classes_line(counted([7, 9]), mixed)
    assert said.endswith("7 of class 0; counted by records, not by data.mixture")


def test_records_without_a_label_and_unreadable_ones_are_told_apart():
    counts = count_classes(Labels([0, 0, 1, -1, None, 3], 4), seconds=10)
    assert counts.counts.tolist() == [2, 1, 0, 1]
    assert (counts.unlabelled, counts.unreadable, counts.looked_at) == (1, 1, 6)
    said = "4: 2 images of class 0 down to none of 1 classes; 1 images have no label"
    assert classes_line(counts, DATA) == said


def test_of_a_large_set_a_stated_sample_is_read():
    counts = count_classes(Labels([0, 1] * 5000, 2), seconds=60, most=400)
    assert counts.looked_at == counts.counts.sum() == 400 and not counts.complete
    assert abs(counts.counts[0] - 200) < 60
    assert "2, by 400 images drawn at random: " in classes_line(counts, DATA)


def test_reading_labels_stops_after_its_time():
    counts = count_classes(Labels([0] * 1000, 1), seconds=0.0)
    assert counts.looked_at == 1


def test_a_set_without_labels_has_no_classes():
    counts = count_classes(Labels([-1] * 5, None), seconds=10)
    assert counts.names == () and classes_line(counts, DATA) == "no labels"


def bars(picture):
    """Lengths of the horizontal bars, from above."""
    lengths = (np.asarray(picture) == BAR).all(axis=-1).sum(axis=1)
    starts = np.flatnonzero((lengths > 0) & (np.roll(lengths, 1) == 0))
    return lengths[starts].tolist()


def counted(counts):
    names = tuple(f"class {number}" for number in range(len(counts)))
    return ClassCounts(names, np.array(counts), 0, sum(counts), sum(counts), 0)


def test_a_few_classes_have_bars_in_proportion():
    lengths = bars(draw_histogram(counted([50, 100, 25]), "Title", []))
    assert lengths == pytest.approx([lengths[1] / 2, lengths[1], lengths[1] / 4], abs=1)


def test_many_classes_are_drawn_by_size():
    picture = np.asarray(draw_histogram(counted(list(range(1, 301))), "Title", []))
    heights = (picture == BAR).all(axis=-1).sum(axis=0)
    heights = heights[heights > 0]
    assert (np.diff(heights) <= 0).all() and heights[0] > 50 * heights[-1]


def test_classes_without_an_image_are_drawn_too():
    draw_histogram(counted([0] * 60), "Title", [])
    draw_histogram(counted([0, 0]), "Title", [])
