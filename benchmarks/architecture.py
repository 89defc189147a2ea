"""Draws the packages and their imports, as they are in the code: `docs/architecture.svg`.

    make architecture

The layers come from import-linter's contract in `pyproject.toml`, the imports from the code (read by grimp, imports
within functions included), the words in the boxes from the table in `docs/architecture.md`.
"""

import itertools
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

_ROOT = Path(__file__).resolve().parents[1]
PICTURE = _ROOT / "docs" / "architecture.svg"
PAGE = _ROOT / "docs" / "architecture.md"

Edge = tuple[str, str]
# Where an edge passes a row between its ends, a node of no height keeps its place: (edge, row).
Passing = tuple[Edge, int]
Node = str | Passing

_WIDTH, _HEIGHT, _GAP, _ROW, _MARGIN = 178, 58, 26, 96, 20
_PASSING_WIDTH = 8


@dataclass(frozen=True)
class Architecture:
    """What the picture shows.

    Attributes:
        layers: The packages by layer, from the top; `medloss` is the last.
        modules: The number of modules per package.
        imports: Every pair of packages of which the first imports the second.
        losses: The packages within `medloss`.
    """

    layers: tuple[tuple[str, ...], ...]
    modules: Mapping[str, int]
    imports: frozenset[Edge]
    losses: tuple[str, ...]

    @property
    def shared(self) -> list[str]:
        """The packages that every other package of `pipelines` imports: the picture says so in place of arrows."""
        others = [room for layer in self.layers[:-1] for room in layer]
        return [room for room in others if all((user, room) in self.imports for user in others if user != room)]

    @property
    def arrows(self) -> list[Edge]:
        """The imports that are drawn: those that no chain of other ones implies, and none of the shared packages."""
        shared = self.shared
        kept = {edge for edge in self.imports if edge[1] not in shared}
        return sorted(edge for edge in kept if not _reaches(kept - {edge}, *edge))


def read_architecture() -> Architecture:
    """The packages as `pyproject.toml` layers them and as the code imports them."""
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    lines = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    layers = (*(tuple(line.replace(" ", "").split("|")) for line in lines), ("medloss",))
    graph = grimp.build_graph("pipelines", "medloss", cache_dir=None)
    rooms = {module: _room(module) for module in graph.modules if module != "pipelines"}
    names = list(rooms.values())
    imports = {
        (room, rooms[imported])
        for module, room in rooms.items()
        for imported in graph.find_modules_directly_imported_by(module)
        if imported in rooms and rooms[imported] != room
    }
    losses = sorted({module.split(".")[1] for module in rooms if re.match(r"medloss\.\w+\.", module)})
    return Architecture(layers, {room: names.count(room) for room in names}, frozenset(imports), tuple(losses))


def read_captions(page: str) -> dict[str, str]:
    """The words in bold with which the page's table begins to describe each package, by the package's name."""
    found = re.findall(r"^\| \[`(\w+)/`\]\(.*?\) \| \*\*(.+?)\*\*", page, re.MULTILINE)
    return {room: words.replace("`", "") for room, words in found}


def draw(architecture: Architecture, captions: Mapping[str, str]) -> str:
    """The picture, as SVG."""
    rows, chains = _with_passings(architecture)
    links = [link for chain in chains.values() for link in itertools.pairwise(chain)]
    rows = _ordered(rows, links)
    places = _positions(rows, links)
    left = min(x - _width(node) / 2 for node, x in places.items()) - _MARGIN
    right = max(x + _width(node) / 2 for node, x in places.items()) + _MARGIN
    height = _ROW * (len(rows) - 1) + _HEIGHT + 2 * _MARGIN + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} 0 {right - left:.0f} {height}" '
        f'width="{right - left:.0f}" height="{height}" font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>The packages of medloss by layer, and their imports</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#46586b"/></marker></defs>',
        f'<rect x="{left:.0f}" width="{right - left:.0f}" height="{height}" fill="white"/>',
        *(_arrow(edge, rows, chains, places) for edge in chains),
        *(
            _box(room, architecture, captions[room], places[room], _top(rows, room))
            for row in rows
            for room in row
            if isinstance(room, str)
        ),
        f'<text x="{(left + right) / 2:.0f}" y="{height - 14}" text-anchor="middle" font-size="12" fill="#46586b">'
        "An arrow means “imports”. Imports that a chain of arrows implies are left out. All run downwards.</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _room(module: str) -> str:
    names = module.split(".")
    return names[0] if names[0] == "medloss" else names[1]


def _reaches(edges: Iterable[Edge], start: str, end: str) -> bool:
    edges = list(edges)
    reached, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        following = {b for a, b in edges if a == here} - reached
        reached |= following
        waiting += following
    return end in reached


def _with_passings(architecture: Architecture) -> tuple[list[list[Node]], dict[Edge, list[Node]]]:
    """The rows with a node wherever an arrow passes one, and the nodes along each arrow."""
    rows: list[list[Node]] = [list(layer) for layer in architecture.layers]
    chains: dict[Edge, list[Node]] = {}
    for edge in architecture.arrows:
        first, last = (_row_of(architecture.layers, room) for room in edge)
        passed = range(first + 1, last)
        for row in passed:
            rows[row].append((edge, row))
        chains[edge] = [edge[0], *((edge, row) for row in passed), edge[1]]
    return rows, chains


def _ordered(rows: list[list[Node]], links: list[tuple[Node, Node]]) -> list[list[Node]]:
    """Each row by its neighbours' mean places, swept down and up; of all orders seen, one with the fewest crossings."""
    best = rows
    for sweep in range(24):
        indices = range(len(rows)) if sweep % 2 == 0 else range(len(rows) - 1, -1, -1)
        for index in indices:
            near = index - 1 if sweep % 2 == 0 else index + 1
            if not 0 <= near < len(rows):
                continue
            place = {node: (i + 0.5) / len(rows[near]) for i, node in enumerate(rows[near])}
            wanted = {}
            for i, node in enumerate(rows[index]):
                beyond = [place[other] for other in _neighbours(node, links) if other in place]
                wanted[node] = sum(beyond) / len(beyond) if beyond else (i + 0.5) / len(rows[index])
            rows = [sorted(row, key=wanted.__getitem__) if i == index else row for i, row in enumerate(rows)]
        if _crossings(rows, links) < _crossings(best, links):
            best = rows
    return best


def _crossings(rows: list[list[Node]], links: list[tuple[Node, Node]]) -> int:
    place = {node: (row, i) for row, nodes in enumerate(rows) for i, node in enumerate(nodes)}
    ends = [(*place[a], place[b][1]) for a, b in links]
    pairs = itertools.combinations(ends, 2)
    return sum(row == other and (a - c) * (b - d) < 0 for (row, a, b), (other, c, d) in pairs)


def _positions(rows: list[list[Node]], links: list[tuple[Node, Node]]) -> dict[Node, float]:
    """The middle of each node: arrows as short as the order of the rows permits, and straight where they pass rows."""
    places = {node: 0.0 for row in rows for node in row}
    neighbours = {node: _neighbours(node, links) for node in places}
    for sweep in range(1000):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            shift = 0.0
            blocks: list[tuple[float, float, list[tuple[Node, float]]]] = []  # place, weight, nodes with their offsets
            for index, node in enumerate(row):
                if index:
                    shift += (_width(row[index - 1]) + _width(node)) / 2 + _GAP
                weights = {other: 1.0 if isinstance(other, str) else 6.0 for other in neighbours[node]}
                total = sum(weights.values()) or 1e-3
                wanted = sum(weight * places[other] for other, weight in weights.items()) / total
                # Pool adjacent violators: neighbours that would overlap are moved together.
                blocks.append((wanted - shift, total, [(node, shift)]))
                while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                    (x, weight, nodes), (other_x, other_weight, others) = blocks[-2:]
                    mean = (x * weight + other_x * other_weight) / (weight + other_weight)
                    blocks[-2:] = [(mean, weight + other_weight, nodes + others)]
            places |= {node: x + offset for x, _, nodes in blocks for node, offset in nodes}
    return places


def _neighbours(node: Node, links: list[tuple[Node, Node]]) -> list[Node]:
    return [b if a == node else a for a, b in links if node in (a, b)]


def _row_of(rows: Iterable[Iterable[Node]], node: Node) -> int:
    return next(index for index, row in enumerate(rows) if node in row)


def _top(rows: list[list[Node]], node: Node) -> int:
    return _MARGIN + _ROW * _row_of(rows, node)


def _width(node: Node) -> int:
    if not isinstance(node, str):
        return _PASSING_WIDTH
    return _WIDTH * 3 if node == "medloss" else _WIDTH


def _port(room: Node, edge: Edge, others: Mapping[Edge, Node], places: Mapping[Node, float]) -> float:
    """Where an arrow meets a box: the arrows of one side, each with its next node, in the order of these nodes."""
    ordered = sorted(others, key=lambda each: places[others[each]])
    step = min(36.0, _width(room) / 2 / len(ordered))
    return places[room] + step * (ordered.index(edge) - (len(ordered) - 1) / 2)


def _arrow(edge: Edge, rows: list[list[Node]], chains: Mapping[Edge, list[Node]], places: Mapping[Node, float]) -> str:
    start, *passings, end = chains[edge]
    outgoing = {other: chain[1] for other, chain in chains.items() if chain[0] == start}
    incoming = {other: chain[-2] for other, chain in chains.items() if chain[-1] == end}
    x, y = _port(start, edge, outgoing, places), _top(rows, start) + _HEIGHT
    path = [f"M{x:.0f},{y}"]
    for node in [*passings, end]:
        to_x = _port(end, edge, incoming, places) if node == end else places[node]
        to_y = _top(rows, node)
        middle = (y + to_y) / 2
        path.append(f"C{x:.0f},{middle:.0f} {to_x:.0f},{middle:.0f} {to_x:.0f},{to_y}")
        if node != end:
            path.append(f"V{to_y + _HEIGHT}")
        x, y = to_x, to_y + _HEIGHT
    return f'<path d="{" ".join(path)}" fill="none" stroke="#46586b" stroke-width="1.4" marker-end="url(#head)"/>'


def _box(room: str, architecture: Architecture, caption: str, middle: float, top: int) -> str:
    width, count = _width(room), architecture.modules[room]
    imported = ", ".join(sorted(b for a, b in architecture.imports if a == room))
    lines = [caption]
    if room == "medloss":
        lines = [f"{caption}: {', '.join(architecture.losses)}"]
    elif room in architecture.shared:
        lines = [caption, "imported by all packages above"]
    fill, edge = ("#fdf1dc", "#b7791f") if room == "medloss" else ("#e8f0f8", "#4a7aa8")
    first = top + (25 if len(lines) == 1 else 18)
    texts = [
        f'<text x="{middle:.0f}" y="{first + 18 + 14 * i}" text-anchor="middle" font-size="11.5" fill="#33414f">'
        f"{escape(line)}</text>"
        for i, line in enumerate(lines)
    ]
    return (
        f"<g><title>{room} imports {imported or 'no other package'}</title>"
        f'<rect x="{middle - width / 2:.0f}" y="{top}" width="{width}" height="{_HEIGHT}" rx="6" fill="{fill}" '
        f'stroke="{edge}"/>'
        f'<text x="{middle:.0f}" y="{first}" text-anchor="middle" font-size="14" fill="#111">'
        f'<tspan font-weight="bold">{room}</tspan><tspan class="modules" fill="#5b6b7b" dx="8" font-size="11">'
        f"{count} modules</tspan></text>{''.join(texts)}</g>"
    )


def main() -> int:
    """Write the picture, and name packages that the page does not describe."""
    architecture = read_architecture()
    captions = read_captions(PAGE.read_text())
    missing = sorted({room for layer in architecture.layers for room in layer} - set(captions))
    if missing:
        print(f"{PAGE.name}: no row for {', '.join(missing)}: add one to the table of packages", file=sys.stderr)
        return 1
    PICTURE.write_text(draw(architecture, captions))
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
