"""Batches: keyed draws, the order, the warp, and the ways in which images are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from builders import tiny_images
from lingula.loading.batches import Radiographs, decode_all, load
from lingula.loading.order import Rows, draws, draws_per_item, epoch_batches, training_batches
from lingula.loading.warp import Warp, draw_warps, warp_images, warp_levels


def test_draws_of_images_and_purposes_do_not_overlap() -> None:
    """Case: an image's fifth number was the first of the next image."""
    images, count = 10_000, 5
    table = np.array([g.random(count) for g in draws_per_item(0, 3, "warp", range(images))])
    assert len(np.unique(table)) == images * count
    columns = [table[:, k] for k in range(count)]
    bound = 5 / np.sqrt(images)  # five standard deviations of a correlation of independent numbers
    for a in range(count):
        for b in range(count):
            for later in (0, 1, 2, 3):  # the same image's numbers, and those of images after it
                if later or a != b:
                    pair = np.corrcoef(columns[a][: images - later], columns[b][later:])
                    assert abs(pair[0, 1]) < bound, (a, b, later)
    again = np.array([g.random(count) for g in draws_per_item(0, 4, "warp", range(images))])
    assert abs(np.corrcoef(table.ravel(), again.ravel())[0, 1]) < bound
    # Other purposes of the same seed and number, long ones too, share none of them.
    others = [draws(0, 3, "order").random(50_000), draws(0, 3, "mixup").random(50_000)]
    others.append(np.array([g.random() for g in draws_per_item(0, 3, "mirror", range(images))]))
    assert len(np.unique(np.concatenate([table.ravel(), *others]))) == 50_000 * 3 + images


def test_a_warp_is_torchs_own_whatever_the_batch_and_the_threads() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 40, 24), np.uint8))
    drawn = draw_warps(Warp((0.5, 1.0), 0.5, 15), np.arange(3), seed=1, epoch=2)
    matrices = torch.from_numpy(drawn)
    grid = F.affine_grid(matrices, [3, 1, 40, 24], align_corners=False)
    right = F.grid_sample(images.float(), grid, align_corners=False)
    torch.testing.assert_close(warp_images(images, matrices), right, atol=0.02, rtol=0)  # of 255
    torch.testing.assert_close(warp_levels(images, matrices).float(), right, atol=0.52, rtol=0)
    for warp in (warp_images, warp_levels):
        warped = warp(images, matrices)
        assert torch.equal(warp(images[1:2], matrices[1:2]), warped[1:2])
        threads = torch.get_num_threads()
        torch.set_num_threads(3)  # which does not divide the 40 rows
        try:
            assert torch.equal(warp(images, matrices), warped)
        finally:
            torch.set_num_threads(threads)


def test_warps_belong_to_the_image_and_the_epoch() -> None:
    warp = Warp((0.5, 1.0), 0.5, 15)
    many = draw_warps(warp, np.array([3, 5, 8]), seed=1, epoch=2)
    assert (draw_warps(warp, np.array([5]), seed=1, epoch=2)[0] == many[1]).all()
    assert (draw_warps(warp, np.array([5]), seed=1, epoch=3)[0] != many[1]).any()
    still = draw_warps(Warp((1, 1), 0, 0), np.array([0]), seed=0, epoch=0)
    picture = tiny_images(1)
    assert torch.equal(warp_levels(picture, torch.from_numpy(still)), picture)
    mirror = draw_warps(Warp((1, 1), 1, 0), np.array([0]), seed=0, epoch=0)
    assert torch.equal(warp_levels(picture, torch.from_numpy(mirror)), picture.flip(-1))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    for rows, size in ((33, 32), (5, 32), (64, 32), (65, 32)):
        batches = epoch_batches(Rows(rows), size, seed=1, epoch=0)
        assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
        assert min(len(b) for b in batches) >= 2
    first = [b.tolist() for b in training_batches(Rows(20), 4, seed=0, epochs=3, start=0)]
    later = [b.tolist() for b in training_batches(Rows(20), 4, seed=0, epochs=3, start=7)]
    assert first[7:] == later and first[:5] != first[5:10]
    shares = [
        list(training_batches(Rows(20), 4, seed=0, epochs=1, start=0, rank=r, world=2))
        for r in (0, 1)
    ]
    for whole, *parts in zip(first, *shares, strict=False):
        assert sorted(np.concatenate(parts).tolist()) == sorted(whole)


def test_loading_is_the_same_by_memory_threads_and_workers(tiny_table: Path) -> None:
    paths = sorted((tiny_table.parent / "images").iterdir())[:6]
    (tiny_table.parent / "images" / "000.png").write_bytes(b"")
    dataset = Radiographs(paths, 32)
    batches = [np.array([2, 0, 1]), np.array([5, 4, 3])]
    ways = [
        list(load(dataset, batches, memory=decode_all(dataset))),
        list(load(dataset, batches)),
        list(load(dataset, batches, workers=1)),
    ]
    for way in ways:
        assert [w.indices.tolist() for w in way] == [[2, 1], [5, 4, 3]]
        assert way[0].failures[0][0] == 0 and "empty" in way[0].failures[0][1]
        for mine, first in zip(way, ways[0], strict=True):
            assert torch.equal(mine.images, first.images)
