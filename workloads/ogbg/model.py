"""Graph network that updates edges, nodes and globals (Battaglia et al. 2018).

arXiv:1806.01261, algorithm 1, with sums as aggregation. Molecules are batched into
packs: one padded graph each, made of many molecules that share no edge. Packs do not
touch each other, so a device needs nothing from another one in the forward pass.

Dimension key: P packs, N nodes of a pack, E edges of a pack, G molecules of a pack, F
features, T tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from workloads.common.dropout import Dropout


class GraphsTuple(NamedTuple):
    """Molecules of all packs, padded; the field names are those of jraph.

    The last molecule of a pack is padding: it takes all padded nodes and edges.
    """

    nodes: Any  # (P, N, node features) float32
    edges: Any  # (P, E, edge features) float32
    receivers: Any  # (P, E) int32, indices of nodes
    senders: Any  # (P, E) int32
    globals: Any  # (P, G, 0): the model fills them
    n_node: Any  # (P, G) int32, nodes of each molecule
    n_edge: Any  # (P, G) int32


class MLP(nn.Module):
    """Linear map, layer norm, activation and dropout, for each of `widths`."""

    widths: Sequence[int]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, dropout_rate: Any) -> jax.Array:
        """Returns (..., widths[-1])."""
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"dense_{i}")(x)
            x = self.activation(nn.LayerNorm(name=f"norm_{i}")(x))
            x = Dropout()(x, train, dropout_rate)
        return x


class MessagePassing(nn.Module):
    """One update of edges, then nodes, then globals, of one pack."""

    widths: Sequence[int]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(
        self, graph: GraphsTuple, train: bool, dropout_rate: Any
    ) -> GraphsTuple:
        """Returns the graph with new features; its structure stays."""
        nodes_NF, edges_EF, globals_GF = graph.nodes, graph.edges, graph.globals
        num_nodes, num_edges = nodes_NF.shape[0], edges_EF.shape[0]
        num_graphs = graph.n_node.shape[0]
        graphs = jnp.arange(num_graphs)
        graph_of_node = jnp.repeat(
            graphs, graph.n_node, total_repeat_length=num_nodes
        )  # (N,)
        graph_of_edge = jnp.repeat(graphs, graph.n_edge, total_repeat_length=num_edges)

        def update(name: str, *parts: jax.Array) -> jax.Array:
            mlp = MLP(self.widths, self.activation, name=name)
            return mlp(jnp.concatenate(parts, axis=-1), train, dropout_rate)

        edges_EF = update(
            "edge_mlp",
            edges_EF,
            nodes_NF[graph.senders],
            nodes_NF[graph.receivers],
            globals_GF[graph_of_edge],
        )
        sent_NF = jax.ops.segment_sum(edges_EF, graph.senders, num_nodes)
        received_NF = jax.ops.segment_sum(edges_EF, graph.receivers, num_nodes)
        nodes_NF = update(
            "node_mlp", nodes_NF, sent_NF, received_NF, globals_GF[graph_of_node]
        )
        globals_GF = update(
            "global_mlp",
            _sum_by(graph_of_node, nodes_NF, num_graphs),
            _sum_by(graph_of_edge, edges_EF, num_graphs),
            globals_GF,
        )
        return graph._replace(nodes=nodes_NF, edges=edges_EF, globals=globals_GF)


class PackNetwork(nn.Module):
    """The network on one pack."""

    num_outputs: int
    latent_width: int
    hidden_widths: Sequence[int]
    num_steps: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, graph: GraphsTuple, train: bool, dropout_rate: Any) -> jax.Array:
        """Returns the globals (G, F) after the last step."""
        graph = graph._replace(
            nodes=nn.Dense(self.latent_width, name="node_dense")(graph.nodes),
            edges=nn.Dense(self.latent_width, name="edge_dense")(graph.edges),
            globals=jnp.zeros((graph.n_node.shape[0], self.num_outputs)),
        )
        for i in range(self.num_steps):
            step = MessagePassing(self.hidden_widths, self.activation, name=f"step_{i}")
            graph = step(graph, train, dropout_rate)
        return graph.globals


class GraphNetwork(nn.Module):
    """The classifier; fields default to the full size."""

    num_outputs: int = 128
    latent_width: int = 256
    hidden_widths: Sequence[int] = (256,)
    num_steps: int = 5
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(
        self, inputs: GraphsTuple, train: bool, dropout_rate: Any = 0.1
    ) -> jax.Array:
        """Returns logits (P * G, T), also of padding molecules."""
        packs = nn.vmap(
            PackNetwork,
            in_axes=(0, None, None),
            variable_axes={"params": None},
            split_rngs={"params": False, "dropout": True},
        )
        globals_PGF = packs(
            self.num_outputs,
            self.latent_width,
            self.hidden_widths,
            self.num_steps,
            self.activation,
            name="network",
        )(inputs, train, dropout_rate)
        logits_PGT = nn.Dense(self.num_outputs, name="head")(globals_PGF)
        return logits_PGT.reshape(-1, self.num_outputs)


def _sum_by(group: jax.Array, values: jax.Array, num_groups: int) -> jax.Array:
    """Sums rows of values (N, F) by their group (N,), which must not decrease."""
    return jax.ops.segment_sum(values, group, num_groups, indices_are_sorted=True)
