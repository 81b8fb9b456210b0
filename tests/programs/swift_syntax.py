"""Print the lines of a Swift file that do not parse.

python swift_syntax.py FILE.swift
"""

import pathlib
import sys

import tree_sitter
import tree_sitter_swift

parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
nodes = [parser.parse(pathlib.Path(sys.argv[1]).read_bytes()).root_node]
while nodes:
    node = nodes.pop()
    if node.is_error or node.is_missing:
        print(f"line {node.start_point[0] + 1}: {node}")
    nodes += node.children
