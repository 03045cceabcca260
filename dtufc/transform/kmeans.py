"""Globally optimal one-dimensional k-means of weighted points.

Clusters of points on a line are intervals, so the best partition of n sorted points into k clusters is
the shortest path 0 -> n of k edges, where the edge (i, j) costs the squared error of points i .. j-1
about their mean::

    c(i, j) = sum_t w_t (x_t - mean)^2,   i <= t < j

c is Monge: c(a, c) + c(b, d) <= c(a, d) + c(b, c) for a <= b <= c <= d. Two things follow.

- The shortest path of *any* number of edges, when each edge costs ``penalty`` more, takes O(n log n):
  of two starts of the last edge the later one wins from some end on and never loses again.
- The cost of the best k-edge path is convex in k, so some penalty makes k edges the best number, or
  k lies between the numbers of two paths that are equally good, which are then crossed into one of
  exactly k edges that is as good (Aggarwal, Schieber and Tokuyama 1994, "Finding a minimum-weight
  k-link path in graphs with the concave Monge property").

About ten penalties are tried; time and memory do not grow with k.
"""

import numpy as np

from dtufc.kernels import kernel

DIRECT_POINTS = 1 << 17
"""Up to so many points the optimum is exact; more are merged first and refined afterwards."""
GROUPS = 1 << 16
"""Groups that more points are merged into."""
TOLERANCE = 1e-13
"""Loss that two equally good paths may differ by, as a fraction of the error."""
MAX_PENALTIES = 300
MAX_LLOYD = 1000


def optimal_centres(values: np.ndarray, weights: np.ndarray, clusters: int) -> np.ndarray:
    """Centres of the least weighted squared error.

    Args:
        values: (n,) float64, strictly increasing.
        weights: (n,) float64, positive.
        clusters: 1 or more.

    Returns:
        (min(n, clusters),) float64, strictly increasing. Guarantee: the global optimum, up to
        rounding, for n <= 131072. Above that the points are merged into 65536 groups, dense where
        centres will be dense, solved exactly, and Lloyd's iteration moves the centres to an optimum
        of all points.
    """
    if values.size <= clusters:
        return values.copy()
    origin = _median(values, weights)  # keeps the digits of the differences where the mass is
    values = values - origin
    if values.size <= DIRECT_POINTS:
        return origin + _cluster_means(values, weights, _best_edges(values, weights, clusters))
    group_edges = _merge(values, weights, max(GROUPS, 4 * clusters))
    mass = np.add.reduceat(weights, group_edges[:-1])
    means = _cluster_means(values, weights, group_edges)
    centres = _cluster_means(means, mass, _best_edges(means, mass, clusters))
    return origin + lloyd(values, weights, centres)


def lloyd(values: np.ndarray, weights: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Move each centre to the mean of the points nearest to it until no point changes its centre.

    Args:
        values, weights: (n,) sorted points, as in :func:`optimal_centres`.
        centres: (k,) increasing; a centre that loses all its points stays where it is.
    """
    origin = _median(values, weights)
    values, centres = values - origin, centres - origin
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * values)])
    edges = None
    for _ in range(MAX_LLOYD):
        inner = np.searchsorted(values, (centres[:-1] + centres[1:]) / 2, side="right")
        moved = np.concatenate([[0], inner, [values.size]])
        if edges is not None and np.array_equal(moved, edges):
            break
        edges = moved
        total = np.diff(mass[edges])
        mean = np.diff(moment[edges]) / np.where(total > 0, total, 1)
        centres = np.where(total > 0, mean, centres)
    return origin + centres


def squared_error(values: np.ndarray, weights: np.ndarray, centres: np.ndarray) -> float:
    """Weighted sum of squared distances to the nearest centre."""
    nearest = centres[np.searchsorted((centres[:-1] + centres[1:]) / 2, values, side="left")]
    return float(np.dot(weights, (values - nearest) ** 2))


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    mass = np.cumsum(weights)
    return float(values[np.searchsorted(mass, mass[-1] / 2)])


def _merge(values: np.ndarray, weights: np.ndarray, groups: int) -> np.ndarray:
    """Edges (m + 1,), m <= ``groups``, of runs of points with equal shares of the integral of
    p^(1/3), the density of the best centres for a density p (Panter and Dite 1951)."""
    share = np.cumsum(_centre_density(values, weights))
    group = np.minimum((share * (groups / share[-1])).astype(np.int64), groups - 1)
    return np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1, [values.size]])


def _centre_density(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """p^(1/3) dx at each point: w^(1/3) gap^(2/3), the gap being half of those on both sides."""
    return np.cbrt(weights * np.gradient(values) ** 2)


def _best_edges(values: np.ndarray, weights: np.ndarray, clusters: int) -> np.ndarray:
    """Edges (clusters + 1,) of the optimal partition of more points than ``clusters``."""
    n = values.size
    table, level = _statistics(values, weights)
    few, many = np.array([0, n]), np.arange(n + 1)  # paths of too few edges and of too many
    if clusters == 1:
        return few
    low, high = 0.0, np.inf  # penalties that give many and few edges
    # Panter and Dite: error = (integral of p^(1/3))^3 / (12 k^2), and its slope in k is the penalty
    penalty = _centre_density(values, weights).sum() ** 3 / (6 * float(clusters) ** 3)
    for trial in range(MAX_PENALTIES):
        edges, cost = _shortest_path(table, level, n, penalty)
        count = edges.size - 1
        if count == clusters:
            return edges
        if count > clusters:
            low, many = penalty, edges
        else:
            high, few = penalty, edges
        error = max(cost - count * penalty, 0.0)
        if (high - low) * n <= TOLERANCE * error or high <= np.nextafter(low, np.inf):
            break
        penalty *= (count / clusters) ** 3  # the count goes with penalty^(-1/3)
        if not low < penalty < high or trial % 3 == 2:
            penalty = _between(low, high)
    return _cross(few, many, clusters)


def _between(low: float, high: float) -> float:
    """A penalty inside the bracket, halfway in the exponent once both ends are known."""
    if low == 0.0:
        return high / 1024
    if high == np.inf:
        return low * 1024
    middle = np.sqrt(low) * np.sqrt(high)
    return middle if low < middle < high else (low + high) / 2


def _cross(few: np.ndarray, many: np.ndarray, clusters: int) -> np.ndarray:
    """The start of one path and the end of another, joined by one edge, with ``clusters`` edges.

    Edge s of ``few`` holds edge s + skip of ``many`` inside it; by the Monge inequality the two
    paths that change over there cost no more together than the two given.
    """
    skip = many.size - 1 - clusters
    s = 0
    while many[s + skip + 1] > few[s + 1]:
        s += 1
    return np.concatenate([few[: s + 1], many[s + skip + 1 :]])


def _cluster_means(values: np.ndarray, weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Weighted mean of each run of points, summed from the run's own first point."""
    first = values[edges[:-1]]
    offset = values - np.repeat(first, np.diff(edges))
    mass = np.add.reduceat(weights, edges[:-1])
    return first + np.add.reduceat(weights * offset, edges[:-1]) / mass


@kernel
def _statistics(values, weights):
    """Weight, mean and squared error of runs, such that two of them make up any interval.

    In row r the points lie in blocks of 2^(r+1). ``table[r, t]`` describes the run from point t to
    the middle of its block: up to it for t in the left half, back to it for t in the right half. The
    interval [a, b] has its ends in the two halves of one block in row log2(a xor b). Every entry
    is a sum of positive terms, so c(i, j) keeps its digits however far off the mean it lies.

    Returns:
        table: (levels, n, 3) float64.
        level: (2^levels,) uint8, floor(log2(v)) for v >= 1.
    """
    n = values.size
    levels = 1
    while (1 << levels) < n:
        levels += 1
    level = np.zeros(1 << levels, np.uint8)
    for v in range(2, level.size):
        level[v] = level[v >> 1] + 1
    table = np.empty((levels, n, 3))
    for row in range(levels):
        half = 1 << row
        for middle in range(half, n + half, 2 * half):
            for direction in (-1, 1):
                start = middle - 1 if direction < 0 else middle
                mass, mean, error = 0.0, 0.0, 0.0
                for step in range(half):
                    t = start + direction * step
                    if t < n:
                        delta = values[t] - mean
                        total = mass + weights[t]
                        error += delta * delta * mass * weights[t] / total
                        mean += delta * weights[t] / total
                        mass = total
                        table[row, t, 0] = mass
                        table[row, t, 1] = mean
                        table[row, t, 2] = error
    return table, level


@kernel(inline="always")
def _cost(table, level, i, j):
    """c(i, j), the squared error of points i .. j-1 about their mean."""
    last = j - 1
    if i == last:
        return 0.0
    row = level[i ^ last]
    left, right = table[row, i], table[row, last]
    delta = left[1] - right[1]
    return left[2] + right[2] + delta * delta * left[0] * right[0] / (left[0] + right[0])


@kernel
def _shortest_path(table, level, n, penalty):
    """Cheapest path 0 -> n where each edge costs c(i, j) + penalty.

    Returns:
        edges: (count + 1,) int64 from 0 to n.
        cost: of the path, penalties included.
    """
    best = np.zeros(n + 1)
    previous = np.zeros(n + 1, np.int64)
    # starts of a last edge still in the race, with the first end where each leads; a queue
    start = np.empty(n + 1, np.int64)
    leads = np.empty(n + 1, np.int64)
    start[0], leads[0] = 0, 1
    head, tail = 0, 1
    for j in range(1, n + 1):
        while head + 1 < tail and leads[head + 1] <= j:
            head += 1
        best[j] = best[start[head]] + _cost(table, level, start[head], j) + penalty
        previous[j] = start[head]
        if j == n:
            break
        while tail > head:  # drop those that j beats where they would start to lead
            old = start[tail - 1]
            end = max(leads[tail - 1], j + 1)
            if best[j] + _cost(table, level, j, end) >= best[old] + _cost(table, level, old, end):
                break
            tail -= 1
        if tail == head:
            first = j + 1
        else:  # first end where j beats the last one left: double the stride, then halve the gap
            lost, stride = end, 1
            won = n + 1
            while lost + stride <= n:
                end = lost + stride
                if best[j] + _cost(table, level, j, end) < best[old] + _cost(
                    table, level, old, end
                ):
                    won = end
                    break
                lost = end
                stride *= 2
            while won - lost > 1:
                end = (won + lost) // 2
                if best[j] + _cost(table, level, j, end) < best[old] + _cost(
                    table, level, old, end
                ):
                    won = end
                else:
                    lost = end
            first = won
        if first <= n:
            start[tail], leads[tail] = j, first
            tail += 1
    count = 0
    j = n
    while j > 0:
        j = previous[j]
        count += 1
    edges = np.empty(count + 1, np.int64)
    j = n
    for index in range(count, -1, -1):
        edges[index] = j
        j = previous[j]
    return edges, best[n]
