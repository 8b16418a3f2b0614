"""Duplicate detection: thumbnails -> pairs of copies and of similar images.

Copies differ in size, compression, brightness and a few percent of their edge. Two images count as copies if
they correlate after local normalisation (which keeps bones, markers and noise, and removes exposure) and
alignment. On 5,216 paediatric images (docs/audit.md) resized copies correlate by at least 0.986, copies
cropped by up to 5% a side by 0.92; two images of one child by at most 0.86, of two children by 0.83.
"""

import hashlib
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hf_pneumonia.data.cores import one_core_each

# Side of a thumbnail in pixels: ribs and vessels are still visible, and 50,000 thumbnails take 205 MB.
THUMBNAIL = 64

# Lowest correlation of copies, and of similar images, which may be of one child under two ids.
COPY = 0.9
SIMILAR = 0.8

# Part of the key of the image cache. Raise it when the same thumbnails give other pairs.
VERSION = 4

_CHUNK = 512  # images per batch
_FEW = 128  # pairs per batch; each needs a megabyte
_NEIGHBOURS = 8  # nearest images that each image is aligned with; enough for copies cropped by 5% a side
_BLOCKS = 4  # blocks in which each image is looked up
_BLOCK = 1000  # hashes per block, on average
_FREQUENCIES = 13  # lowest cosine frequencies along each side, which form the perceptual hash
_EDGE = 3  # pixels of a thumbnail cropped from every side in the second view of each image
_MAX_SCALE, _MAX_SHIFT = 0.25, 0.25  # limits of the alignment; a shift of 2 is the whole side


def find_copies(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the pairs of similar images among (n, THUMBNAIL, THUMBNAIL) uint8.

    A perceptual hash proposes each image's nearest neighbours; the correlation of pixels decides. Images are
    compared within blocks of similar ones. The size of the blocks does not depend on n, so the time grows
    with n, but for assigning the images to blocks, which takes seconds for 200,000 images.

    Returns:
        (m, 2) int64, sorted rows of pairs with the lower row first; and (m,) float32 correlations, at least
        SIMILAR. Equal thumbnails are paired with the first of them, which alone is paired with others; apart
        from that the order of the images does not matter. Blank images are in no pair.
    """
    threads = torch.get_num_threads()
    with one_core_each(), ThreadPoolExecutor(threads) as pool:
        return _search(thumbnails, pool)


def _search(thumbnails: np.ndarray, pool: Executor) -> tuple[np.ndarray, np.ndarray]:
    """Search in rounds, because an image's nearest neighbours may all be copies of one image.

    One image represents all equal thumbnails, and in each further round one represents each large group of
    copies, until nothing new is found.
    """
    first = _first_equals(thumbnails)
    repeated = np.flatnonzero(first < np.arange(len(first)))
    found, likeness = np.stack([first[repeated], repeated], axis=1), np.ones(len(repeated), dtype=np.float32)
    chosen = np.flatnonzero(first == np.arange(len(first)))
    large = chosen
    while len(large):
        pairs = _propose(thumbnails, chosen, pool)
        pairs = pairs[np.isin(pairs, large).any(axis=1)]
        correlations = np.empty(len(pairs), np.float32)
        list(pool.map(partial(_overlay_rows, thumbnails, pairs, correlations), range(0, len(pairs), _FEW)))
        alike = correlations >= SIMILAR
        found = np.concatenate([found, pairs[alike]])
        likeness = np.concatenate([likeness, correlations[alike]])
        group = connect(len(first), found[likeness >= COPY])
        before, chosen = len(chosen), np.unique(group[chosen])
        size = np.bincount(group, minlength=len(first))
        large = chosen[size[chosen] > _NEIGHBOURS // 2] if len(chosen) < before else chosen[:0]
    found, once = np.unique(found, axis=0, return_index=True)
    return found, likeness[once]


def connect(count: int, links: np.ndarray) -> np.ndarray:
    """Find the connected components of the nodes 0 to count - 1 with the edges `links` (m, 2).

    Returns:
        (count,) int64, the lowest node of each node's component; a node without links is its own.
    """
    links = np.asarray(links).reshape(-1, 2)
    graph = coo_array((np.ones(len(links), dtype=bool), tuple(links.T)), (count, count))
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return first[group]


def _first_equals(thumbnails: np.ndarray) -> np.ndarray:
    """(n,) first row with the same thumbnail; the own row of a blank image."""
    seen: dict[bytes, int] = {}
    first = np.arange(len(thumbnails))
    for row, thumbnail in enumerate(thumbnails):
        if thumbnail.std() > 1:
            first[row] = seen.setdefault(hashlib.sha256(thumbnail.tobytes()).digest(), row)
    return first


def _propose(thumbnails: np.ndarray, chosen: np.ndarray, pool: Executor) -> np.ndarray:
    """(m, 2) int64 pairs of the chosen rows worth a closer look, lower row first, without repetition."""
    # Threads write to preallocated arrays: small results between large temporary ones would fragment the
    # memory (100,000 images: 4.4 GB instead of 2.1).
    views = torch.empty(2, len(chosen), _FREQUENCIES**2 - 1)
    structured = torch.empty(len(chosen), dtype=torch.bool)

    def hash_images(start: int) -> None:
        chunk = slice(start, start + _CHUNK)
        views[:, chunk], structured[chunk] = _hashes(thumbnails[chosen[chunk]])

    list(pool.map(hash_images, range(0, len(chosen), _CHUNK)))
    hashes, rows = views[:, structured].flatten(0, 1), torch.from_numpy(chosen)[structured].repeat(2)
    if not len(hashes):
        return np.empty((0, 2), dtype=np.int64)
    # Landmarks spread over the images, independent of their order.
    landmarks = hashes[hashes[:, 0].argsort()[:: _BLOCK // _BLOCKS]]
    blocks = min(_BLOCKS, len(landmarks))
    parts = [(part @ landmarks.T).topk(blocks).indices.flatten() for part in hashes.split(_CHUNK)]
    nearest = torch.cat(parts)
    sizes = nearest.bincount(minlength=len(landmarks)).tolist()
    members = (nearest.argsort(stable=True) // blocks).split(sizes)
    ends = np.cumsum([len(block) * min(_NEIGHBOURS, len(block)) for block in members])
    pairs, likeness = np.empty((2, ends[-1]), np.int64), np.empty(ends[-1], np.float32)

    def neighbours(block: torch.Tensor, end: int) -> None:
        start = end - len(block) * min(_NEIGHBOURS, len(block))
        for chunk in block.split(_CHUNK):
            pair, values = _neighbours(hashes, rows, chunk, block)
            part = slice(start, start := start + len(values))
            pairs[:, part], likeness[part] = pair, values

    list(pool.map(neighbours, members, ends.tolist()))
    return _nearest(pairs[0], pairs[1], likeness, len(thumbnails))


def _neighbours(
    hashes: torch.Tensor, rows: torch.Tensor, chunk: torch.Tensor, members: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, n) lower and higher row, and (n,) likeness, of the nearest among `members` to each of `chunk`."""
    likeness = hashes[chunk] @ hashes[members].T
    likeness[rows[chunk][:, None] == rows[members]] = -1  # an image is not its own neighbour
    best = likeness.topk(min(_NEIGHBOURS, len(members)))
    pair = torch.stack([rows[chunk][:, None].expand_as(best.indices), rows[members][best.indices]])
    return torch.stack([pair.amin(0), pair.amax(0)]).flatten(1), best.values.flatten()


def _nearest(low: np.ndarray, high: np.ndarray, likeness: np.ndarray, count: int) -> np.ndarray:
    """Keep the pairs (low, high), which may repeat, that hold a nearest neighbour of one of their rows."""
    code, which = np.unique(low * count + high, return_inverse=True)
    best = np.full(len(code), -1, dtype=np.float32)
    np.maximum.at(best, which, likeness)
    low, high = code // count, code % count
    row = np.concatenate([low, high])
    order = np.lexsort((np.tile(-best, 2), row))
    rank = np.empty(len(row), dtype=np.int64)
    rank[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    chosen = (rank.reshape(2, -1) < _NEIGHBOURS).any(0) & (low < high)
    return np.stack([low[chosen], high[chosen]], axis=1)


def _hashes(thumbnails: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute perceptual hashes of (n, THUMBNAIL, THUMBNAIL): (2, n, d) float32 of length one; and (n,)
    whether the image is not blank: the hash of a blank one means nothing.

    The hash holds the lowest cosine frequencies after coarse local normalisation, as in "pHash", but with
    their magnitude. Each image has two, with and without its edge: a crop then has a similar hash.
    """
    side = torch.arange(THUMBNAIL)
    cosine = torch.cos(torch.pi / THUMBNAIL * (side + 0.5) * torch.arange(_FREQUENCIES)[:, None])
    whole = torch.from_numpy(thumbnails).float()[:, None]
    inner = whole[:, :, _EDGE:-_EDGE, _EDGE:-_EDGE]
    inner = F.interpolate(inner, (THUMBNAIL, THUMBNAIL), mode="bilinear", align_corners=False)
    spectrum = (cosine @ _normalise(torch.stack([whole, inner]), 10) @ cosine.T).flatten(2)
    return F.normalize(spectrum[..., 1:], dim=-1), whole.flatten(1).std(1) > 1  # without the mean


def _overlay_rows(thumbnails: np.ndarray, pairs: np.ndarray, found: np.ndarray, start: int) -> None:
    """Write the correlations of a few pairs of rows to `found`, after normalising at the scale of ribs."""
    few = slice(start, start + _FEW)
    images = (torch.from_numpy(thumbnails[rows]).float()[:, None] for rows in pairs[few].T)
    found[few] = _overlay(*(_normalise(image, 3) for image in images)).numpy()


def _overlay(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Align each second image with the first, both (m, 1, THUMBNAIL, THUMBNAIL) and locally normalised.

    Least squares over the scale and shift of each axis, coarse to fine: the inverse compositional method of
    Baker and Matthews, "Lucas-Kanade 20 Years On" (IJCV 2004). Returns (m,) Pearson correlations of the
    overlap; a pair that correlates little at a coarse scale is not refined and keeps that correlation.
    """
    fit = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(len(first), 1)  # scale x, scale y, shift x, shift y
    correlation = torch.zeros(len(first))
    active = torch.arange(len(first))
    for side, lowest in ((THUMBNAIL // 4, 0.6), (THUMBNAIL // 2, 0.75), (THUMBNAIL, 1.0)):
        still, moved = (F.adaptive_avg_pool2d(images[active], side) for images in (first, second))
        fit[active], correlation[active] = _fit(still, moved, fit[active])
        active = active[correlation[active] >= lowest]
    return correlation


def _fit(still: torch.Tensor, moved: torch.Tensor, fit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take three steps of `_overlay` at one scale: (m, 4) fit and (m,) correlation."""
    side = still.shape[-1]
    centre = (torch.arange(side) * 2 + 1) / side - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    across, down = _gradient(still)
    steepest = torch.cat([across * x, down * y, across, down], 1).flatten(2)  # (m, 4, side * side)
    curvature = steepest @ steepest.mT + 0.01 * torch.eye(4)
    solution = torch.linalg.solve(curvature, steepest)
    for _ in range(3):
        image, inside = _move(moved, fit, x, y)
        residual = ((image - still) * inside).flatten(2)
        step = (solution @ residual.mT).squeeze(2)
        scale = (fit[:, :2] / (1 + step[:, :2].clamp(-0.5, 0.5))).clamp(1 - _MAX_SCALE, 1 + _MAX_SCALE)
        shift = (fit[:, 2:] - scale * step[:, 2:]).clamp(-_MAX_SHIFT, _MAX_SHIFT)
        fit = torch.cat([scale, shift], 1)
    image, inside = _move(moved, fit, x, y)
    return fit, _correlate(still.flatten(1), image.flatten(1), inside.flatten(1))


def _gradient(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients along x and y, per unit of a coordinate that runs from -1 to 1 over the image."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    step = images.shape[-1] / 4  # two pixels are 4 / side
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) * step
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) * step
    return across, down


def _move(
    images: torch.Tensor, fit: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample images at scale * position + shift; also return 1.0 where this lies inside them, else 0.0."""
    fit = fit[:, :, None, None]
    grid = torch.stack([x * fit[:, 0] + fit[:, 2], y * fit[:, 1] + fit[:, 3]], -1)
    inside = (grid.abs() <= 1).all(-1)[:, None].float()
    return F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False), inside


def _correlate(first: torch.Tensor, second: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """(m,) Pearson correlation of (m, p) images over the pixels where `inside` is 1."""
    count = inside.sum(1, keepdim=True).clamp_min(1)
    first, second = (
        (images - (images * inside).sum(1, keepdim=True) / count) * inside for images in (first, second)
    )
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1)).clamp_min(1e-6)


def _normalise(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Subtract the local mean and divide by the local spread, both Gaussian with `sigma` pixels."""
    detail = images - _smooth(images, sigma)
    # 2 of 255 gray levels, so that noise and compression are not amplified in flat areas.
    return detail / (_smooth(detail**2, sigma).sqrt() + 2)


def _smooth(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur with a Gaussian, mirrored at the edge. Matrix products are faster than conv2d on small images."""
    side = images.shape[-1]
    reach = min(int(3 * sigma + 0.5), side)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    position = torch.arange(side)[:, None] + offsets
    position = torch.where(position < 0, -1 - position, position)
    position = torch.where(position >= side, 2 * side - 1 - position, position)
    blur = torch.zeros(side, side).scatter_add_(1, position, (kernel / kernel.sum()).expand_as(position))
    return blur @ images @ blur.T
