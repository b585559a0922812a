"""Bad images are named once and listed, and end a run when they are too many."""

from collections import Counter

import pytest

from xtra_jax.data.ahead import BadRecord
from xtra_jax.data.bad_images import MAX_NAMED, BadImageLimit, BadImages
from xtra_jax.data.mixture import Mixture, repeats
from xtra_jax.errors import RunFailed


def test_few_broken_images_never_end_a_run_and_count_once_in_every_epoch():
    limit = BadImageLimit(examples=100, batch_size=20, fraction=0.001)
    for step in range(1, 51):
        limit.add(step, valid=18)


def test_more_broken_images_than_their_share_end_the_run():
    limit = BadImageLimit(examples=100, batch_size=20, fraction=0.3)
    for step, bad in enumerate((10, 10, 10, 0), 1):
        limit.add(step, 20 - bad)
    with pytest.raises(RunFailed, match="31 of the 100 training images .* data.bad_fraction=0.3"):
        limit.add(5, 19)


def test_an_epoch_begins_anew():
    limit = BadImageLimit(examples=40, batch_size=20, fraction=0.001)
    for step in range(1, 9):
        limit.add(step, 20 - (10 if step % 2 else 0))
    with pytest.raises(RunFailed, match="20 of the 40"):
        limit.add(9, 10)
        limit.add(10, 10)


def test_a_batch_larger_than_the_data_set_counts_its_images_as_often_as_it_holds_them():
    limit = BadImageLimit(examples=20, batch_size=50, fraction=0.5)
    limit.add(1, 50 - 25)
    with pytest.raises(RunFailed):
        limit.add(2, 50 - 31)


def test_a_first_batch_without_any_image_ends_the_run():
    with pytest.raises(RunFailed, match="all 8 images of the first batch"):
        BadImageLimit(1000, 8, 1.0).add(1, 0)
    later = BadImageLimit(1000, 8, 1.0)
    later.add(1, 1)
    later.add(2, 0)


def test_images_that_a_batch_of_two_epochs_holds_twice_count_for_neither():
    limit = BadImageLimit(examples=100, batch_size=64, fraction=0.001)
    for step in range(1, 30):  # every second batch reaches into the next epoch
        limit.add(step, valid=64 - 10)


@pytest.mark.parametrize("step", [1, 2])  # the second batch reaches into the next epoch
def test_a_share_of_zero_allows_no_image_to_be_bad(step):
    limit = BadImageLimit(examples=100, batch_size=64, fraction=0.0)
    for whole in range(1, step):
        limit.add(whole, valid=64)
    with pytest.raises(RunFailed, match=r"data.bad_fraction=0 allows for none"):
        limit.add(step, valid=63)


def bad(index):
    return BadRecord(index, f"image-{index}", f"torn\nin {index}")


def test_a_bad_image_is_named_once_and_only_the_first_ones_are(capfd):
    met = BadImages()
    for index in [*range(MAX_NAMED + 10), *range(5)]:
        met.add(bad(index))
    lines = capfd.readouterr().err.split(".\n")
    assert lines[3] == "Image image-3 is unusable and counts for nothing: torn\nin 3"
    assert "no longer named" in lines[MAX_NAMED] and lines[MAX_NAMED + 1 :] == [""]
    assert met.indices == list(range(MAX_NAMED + 10))


def test_the_sentence_that_ends_a_run_names_the_first_and_the_file_that_lists_all(tmp_path):
    file = tmp_path / "run" / "bad_images.txt"
    met = BadImages(str(file))
    limit = BadImageLimit(examples=1000, batch_size=50, fraction=0.01, met=met)
    for index in range(11):
        met.add(bad(index))
    with pytest.raises(RunFailed) as found:
        limit.add(1, 50 - 11)
    named = ", ".join(f"image-{index}" for index in range(5))
    assert f"are unusable ({named}, ...; {file} lists them), which is" in str(found.value)
    lines = file.read_text().splitlines()
    assert lines == [f"image-{index}\ttorn in {index}" for index in range(11)]


def test_a_list_that_cannot_be_written_costs_the_sentence_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    met = BadImages(str(tmp_path / "file" / "bad_images.txt"))
    met.add(bad(3))
    with pytest.raises(RunFailed, match=r"are unusable \(image-3\), so there is nothing"):
        BadImageLimit(100, 1, 0.5, met).add(1, 0)


class Sized:
    num_classes, class_names = None, ()

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def epochs_of(mixture, broken, batch_size=50, epochs=2, fraction=0.001):
    """Counts some epochs of a mixture with these broken records."""
    limit = BadImageLimit.of(mixture, batch_size, fraction, BadImages())
    order = mixture.order(seed=0)
    for step in range(epochs * len(mixture) // batch_size):
        drawn = [order[step * batch_size + row] for row in range(batch_size)]
        limit.add(step + 1, batch_size - sum(index in broken for index in drawn))


@pytest.mark.parametrize("shares", [(0.1, 0.9), (9, 1), (1, 1)])
def test_ten_broken_images_of_a_small_source_that_is_drawn_often_end_no_run(shares):
    mixture = Mixture([Sized(288), Sized(12)], shares)
    epochs_of(mixture, broken=range(288, 298))


def test_too_many_broken_images_of_a_mixture_are_told_as_samples():
    mixture = Mixture([Sized(300), Sized(100)], (1, 3))
    with pytest.raises(RunFailed, match="of the 400 samples of an epoch are unusable, which is"):
        epochs_of(mixture, broken=range(300, 350))
    epochs_of(mixture, broken=range(300, 350), fraction=0.5)


@pytest.mark.parametrize("shares", [(0.1, 0.9), (9, 1), (1, 1), (0.37, 0.63)])
def test_no_record_comes_more_often_in_an_epoch_than_its_mixture_says(shares):
    mixture = Mixture([Sized(40), Sized(7)], shares)
    order = mixture.order(seed=0)
    for epoch in range(20):
        drawn = Counter(order[epoch * 47 + place] for place in range(47))
        assert max(drawn.values()) <= repeats(mixture)
    assert repeats(Mixture([Sized(40), Sized(7)])) == repeats(Sized(5)) == 1
    assert repeats(Mixture([Sized(5)], (2,))) == 1
