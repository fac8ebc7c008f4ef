"""Texts as a radix tree, and BatchLLM's flattening of it into groups that share one prefix each."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Node:
    """A piece of text that the requests below it share; `ends` are requests whose text ends here."""

    text: tuple[int, ...] = ()
    children: list[Node] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def leaves(self) -> list[int]:
        return self.ends + [r for child in self.children for r in child.leaves()]


def prefix_tree(texts: dict[int, tuple[int, ...]]) -> Node:
    """Radix tree of texts, given as blocks; request -> its text."""
    root = Node()
    for request, text in texts.items():
        node, at = root, 0
        while True:
            child = next((c for c in node.children if at < len(text) and c.text[0] == text[at]), None)
            if child is None:
                if at < len(text):
                    node.children.append(Node(text[at:], [], [request]))
                else:
                    node.ends.append(request)
                break
            same = 0
            while same < len(child.text) and at + same < len(text) and child.text[same] == text[at + same]:
                same += 1
            if same < len(child.text):  # split
                child.children, child.ends = [Node(child.text[same:], child.children, child.ends)], []
                child.text = child.text[:same]
            node, at = child, at + same
    return root


def flatten(root: Node) -> list[tuple[tuple[int, ...], list[int]]]:
    """Groups (shared prefix, requests): the first level of the tree after lifting what gains by it.

    Bottom-up: child g of c, with several requests below, becomes c's sibling with c's text before its own if sharing
    g's own text among its requests saves more than computing c's once more: (leaves(g) - 1) * len(g) > len(c).

    Source: Zheng et al., arXiv 2412.03594 v3; microsoft/MixLLM, prefix_clustering.py.
    """

    def lift(node: Node, parent: Node | None) -> None:
        for child in list(node.children):
            lift(child, node)
        if parent is None:
            return
        for g in list(node.children):
            leaves = len(g.leaves())
            if leaves > 1 and (leaves - 1) * len(g.text) > len(node.text):
                node.children.remove(g)
                parent.children.append(Node(node.text + g.text, g.children, g.ends))
        if not node.leaves():
            parent.children.remove(node)
        elif len(node.children) == 1 and not node.ends:
            only = node.children[0]
            node.text, node.children, node.ends = node.text + only.text, only.children, only.ends

    lift(root, None)
    return [(g.text, g.leaves()) for g in root.children] + [((), [r]) for r in root.ends]
