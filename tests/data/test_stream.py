import itertools
from collections import Counter

import numpy as np
import torch
from PIL import Image

from diptych.data import DataConfig, Example, SampleStream, collate, make_batch, open_dataset, sample_stream
from tests.data.tiny import image_dataset


def test_every_epoch_holds_every_example_once_in_a_new_order():
    stream = SampleStream(50, seed=3)
    epochs = [[stream[e * 50 + i][0] for i in range(50)] for e in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_position_fixes_the_sample_in_any_order():
    straight = list(itertools.islice(sample_stream(7, 5), 60))
    assert straight == [SampleStream(7, 5)[p] for p in range(60)]
    jumping = SampleStream(7, 5)
    assert [jumping[p] for p in (59, 0, 30, 8, 58)] == [straight[p] for p in (59, 0, 30, 8, 58)]
    assert list(itertools.islice(sample_stream(7, 5, start=33), 10)) == straight[33:43]


def test_seeds_differ_between_positions_and_runs():
    seeds = [SampleStream(7, run)[p][1] for run in range(3) for p in range(200)]
    assert len(set(seeds)) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_ranks_share_the_stream():
    whole = [SampleStream(11, 0)[p] for p in range(24)]
    ranks = [[SampleStream(11, 0)[step * 8 + rank * 4 + i] for step in range(3) for i in range(4)] for rank in range(2)]
    joined = [x for step in range(3) for rank in range(2) for x in ranks[rank][step * 4 : step * 4 + 4]]
    assert joined == whole


def test_a_batch(tmp_path):
    image_dataset(tmp_path / "a.tar", 6)
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    stream = SampleStream(len(data), 1)
    batch = make_batch(data, stream, range(4, 10))  # across the end of an epoch
    assert batch["picture"].shape == (6, 3, 8, 8)
    assert batch["picture"].dtype == torch.float32
    assert batch["seed"].dtype == torch.int64
    assert batch["seed"].tolist() == [stream[p][1] for p in range(4, 10)]
    assert batch["key"] == [data[stream[p][0]].key for p in range(4, 10)]


def test_pixels_run_from_minus_one_to_one_channels_first():
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, 1] = (255, 0, 51)
    got = collate([Example(decoded=image, captions=("x",), meta={}, key="k")], [0])["picture"][0]
    assert got[:, 0, 1].tolist() == [1.0, -1.0, -0.6000000238418579]
    assert got[:, 1, 0].tolist() == [-1.0, -1.0, -1.0]


def test_the_seed_picks_among_the_captions_evenly():
    example = Example(decoded=np.zeros((1, 1, 3), dtype=np.uint8), captions=("a", "b", "c"), meta={}, key="k")
    seeds = [SampleStream(9, 0)[p][1] for p in range(3000)]
    told = collate([example] * 3000, seeds)["caption"]
    assert all(abs(count - 1000) < 120 for count in Counter(told).values())
    assert told == collate([example] * 3000, seeds)["caption"]


# Crops


def numbered(height=6, width=6, key="k"):
    """Each pixel tells its row in red and its column in green."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return Example(decoded=image, captions=("x",), meta={}, key=key)


def cutting(crop, size=6, **options):
    return DataConfig(size=size, crop=crop, **options)


def places(batch):
    """(top, left) of each crop, after a look at every pixel of it."""
    pixels = ((batch["picture"] + 1) * 127.5).round().long()  # (B, 3, H, W)
    tops, lefts = pixels[:, 0, :1, :1], pixels[:, 1, :1, :1]
    side = pixels.shape[-1]
    assert torch.equal(pixels[:, 0], (tops + torch.arange(side)[:, None]).expand(-1, -1, side))
    assert torch.equal(pixels[:, 1], (lefts + torch.arange(side)).expand(-1, side, -1))
    return list(zip(tops.flatten().tolist(), lefts.flatten().tolist(), strict=True))


def test_every_place_of_a_crop_is_as_likely():
    seeds = [SampleStream(9, 0)[p][1] for p in range(3200)]
    batch = collate([numbered()] * 3200, seeds, cutting(3))
    assert batch["picture"].shape == (3200, 3, 3, 3)
    found = Counter(places(batch))
    assert set(found) == set(itertools.product(range(4), range(4)))  # both borders included
    assert all(abs(count - 200) < 70 for count in found.values())
    oblong = places(collate([numbered(5, 7)] * 200, seeds[:200], cutting(4, size=5)))
    assert set(oblong) == set(itertools.product(range(2), range(4)))


def test_the_seed_alone_fixes_the_place_of_a_crop():
    seeds = [SampleStream(9, 0)[p][1] for p in range(40)]
    together = places(collate([numbered(key=str(i)) for i in range(40)], seeds, cutting(2)))
    assert [places(collate([numbered()], [seed], cutting(2)))[0] for seed in seeds] == together
    assert places(collate([numbered()] * 40, seeds[::-1], cutting(2))) == together[::-1]


def test_a_crop_of_the_whole_size_is_the_whole_image():
    whole, cropped = (collate([numbered()] * 3, [1, 2, 3], crop) for crop in (None, cutting(6)))
    assert torch.equal(whole["picture"], cropped["picture"])


def test_a_crop_has_the_caption_of_the_whole_image():
    example = Example(decoded=numbered().image, captions=("a", "b", "c"), meta={}, key="k")
    assert collate([example] * 50, range(50), cutting(2))["caption"] == collate([example] * 50, range(50))["caption"]


def test_the_stream_crops_as_configured(tmp_path):
    image_dataset(tmp_path / "a.tar", 6)
    for crop in (None, 5):
        data = open_dataset(DataConfig(path=str(tmp_path), size=8, crop=crop))
        stream, positions = SampleStream(len(data), 1), list(range(4, 12))
        pairs = [stream[p] for p in positions]
        batch = make_batch(data, stream, positions)
        expected = collate([data[i] for i, _ in pairs], [seed for _, seed in pairs], data.config)
        assert batch["picture"].shape[-2:] == (crop or 8, crop or 8)
        assert torch.equal(batch["picture"], expected["picture"])
        again = make_batch(data, SampleStream(len(data), 1), positions)  # validation, a resume
        assert torch.equal(batch["picture"], again["picture"])
        parts = [make_batch(data, stream, positions[i::2])["picture"] for i in range(2)]  # two ranks
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), batch["picture"])


# What else is drawn of an image


def seen(example, config, count=1000):
    """What is seen of an example at so many positions of a stream, (N, 3, S, S) of whole numbers."""
    batch = collate([example] * count, [SampleStream(9, 0)[p][1] for p in range(count)], config)
    return ((batch["picture"] + 1) * 127.5).round().long()


def test_a_share_of_the_images_is_flipped():
    plain, never, half, always = (
        seen(numbered(), None if flip is None else DataConfig(size=6, flip=flip)) for flip in (None, 0.0, 0.3, 1.0)
    )
    assert torch.equal(plain, never)
    assert torch.equal(always, plain.flip(-1))
    mirrored = (half == always).flatten(1).all(1)
    assert torch.equal(half[~mirrored], plain[~mirrored])
    assert 250 < mirrored.sum() < 350
    assert torch.equal(seen(numbered(), DataConfig(size=6, flip=0.3)), half)  # a resume, another number of processes


def test_a_flip_moves_neither_crops_nor_captions():
    both = seen(numbered(), cutting(2, flip=1.0))
    assert torch.equal(both.flip(-1), seen(numbered(), cutting(2)))


def test_the_shifted_centre_crop_goes_as_far_as_it_may():
    config = DataConfig(size=10, center_shift=0.2)
    for height, width, reach in ((10, 30, 2), (12, 10, 1), (10, 10, 0)):
        found = seen(numbered(height, width), config)
        assert found.shape[-2:] == (10, 10)
        starts = (found[:, 1, 0, 0] if width > height else found[:, 0, 0, 0]).tolist()
        centre = (max(height, width) - 10) // 2
        assert set(starts) == set(range(centre - reach, centre + reach + 1))


def test_random_sizes_change_the_visible_part():
    """Of an image (20, 30) at its largest, crops of 10 show between all and half of the shorter side."""
    found = seen(numbered(20, 30), DataConfig(size=10, max_size=20, crop=10))
    assert found.shape == (1000, 3, 10, 10)
    shown = found[:, 0, -1, 0] - found[:, 0, 0, 0]  # rows of the image, from the first to the last that is seen
    assert shown.min() <= 10 and shown.max() >= 17
    lefts = found[:, 1, 0, 0]
    assert lefts.min() <= 1 and lefts.max() >= 18


def test_crops_and_shifts_reach_beyond_the_centre_of_oblong_images(tmp_path):
    image = Image.fromarray(numbered(8, 24).image)
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    for config in ({"crop": 8}, {"center_shift": 0.5}, {"size": 8, "max_size": 8, "crop": 4}):
        data = open_dataset(DataConfig(path=str(tmp_path), **{"size": 8, **config}))
        assert data[0].image.shape == (8, 24, 3)
        batch = make_batch(data, SampleStream(1, 0), range(50))
        assert batch["picture"].shape == (50, 3, data.config.side, data.config.side)
        assert len({places(batch)[i][1] for i in range(50)}) > 4
