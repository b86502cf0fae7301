"""Policies for tests, and a slow replay in plain Python that shares no code with the package."""

from __future__ import annotations

import numpy as np

from equipoise import Ability

WARM_UP = 4  # calls of a policy before the replay begins


class Plain:
    """Greedy replicas and packing in plain Python; keeps what it was handed."""

    name = "plain"

    def __init__(self):
        self.calls = []

    def place(self, problem):
        loads, topology = problem.loads, problem.topology
        self.calls.append((loads.copy(), problem.held, problem.max_moves))
        slots, ranks = topology.num_slots, topology.num_ranks
        return np.array([pack(list(layer), slots, ranks) for layer in loads.sum(axis=0)])


class Stay:
    """Keeps the current placement: no moves after the first plan."""

    name = "stay"
    abilities = frozenset({Ability.BUDGET})

    def __init__(self):
        self.budgets = []

    def place(self, problem):
        self.budgets.append(problem.max_moves)
        if problem.held is None:
            return Plain().place(problem)
        return problem.held.phy2log.copy()


def pack(loads, num_slots, num_ranks):
    """Slots of one layer: a replica more for the heaviest, then heaviest first to the lightest rank with room."""
    counts = [1] * len(loads)
    for _ in range(num_slots - len(loads)):
        heaviest = max(range(len(loads)), key=lambda e: (loads[e] / counts[e], -e))
        counts[heaviest] += 1
    items = [(loads[e] / counts[e], e) for e in range(len(loads)) for _ in range(counts[e])]
    items.sort(key=lambda item: (-item[0], item[1]))
    ranks = [[] for _ in range(num_ranks)]
    weight = [0.0] * num_ranks
    for load, expert in items:
        open_ranks = [r for r in range(num_ranks) if len(ranks[r]) < num_slots // num_ranks]
        rank = min(open_ranks, key=lambda r: (weight[r], r))
        ranks[rank].append(expert)
        weight[rank] += load
    return [expert for rank in ranks for expert in rank]


def slow_replay(counts, steps, topology, history, interval, cost):
    """Numbers of the series do-nothing, plain, all-past and oracle, by their names.

    ``counts`` are nested lists ``[T][L][E]``, ``cost`` a dict of plain numbers.
    """
    num_windows, num_layers, num_experts = len(counts), len(counts[0]), len(counts[0][0])
    ranks, slots = topology.num_ranks, topology.num_slots
    per_rank, per_node = slots // ranks, ranks // topology.num_nodes
    start_map = [[p % num_experts for p in range(slots)] for _ in range(num_layers)]
    current = dict.fromkeys(("do-nothing", "plain", "all-past", "oracle"), start_map)
    found = {
        name: {"i": [], "worst": [], "sums": [], "time": [], "moves": 0, "move_s": 0.0, "in": []}
        for name in current
    }

    def add(windows):
        return [
            [sum(counts[w][layer][e] for w in windows) for e in range(num_experts)]
            for layer in range(num_layers)
        ]

    def served(loads, row):
        on_rank = [0.0] * ranks
        for slot, expert in enumerate(row):
            on_rank[slot // per_rank] += loads[expert] / row.count(expert)
        return on_rank

    def layer_imbalance(loads, row):
        on_rank = served(loads, row)
        return max(on_rank) / (sum(on_rank) / ranks) if sum(on_rank) else 1.0

    def layer_time(loads, row, length):
        work = [0.0] * ranks
        for slot, expert in enumerate(row):
            share = loads[expert] / row.count(expert)
            if cost["tile"] > 1:
                tiles = share / length / cost["tile"]
                whole = int(tiles) if tiles - int(tiles) < 1e-9 else int(tiles) + 1
                share = whole * cost["tile"] * length
            work[slot // per_rank] += share
        slowest = max(work[r] / cost["speed"][r] for r in range(ranks))
        return length * cost["fixed"] + cost["token"] * slowest

    def move(old, new):
        moves, seconds = 0, 0.0
        for layer in range(num_layers):
            held = [set(old[layer][r * per_rank : (r + 1) * per_rank]) for r in range(ranks)]
            wanted = [set(new[layer][r * per_rank : (r + 1) * per_rank]) for r in range(ranks)]
            slowest = 0.0
            for r in range(ranks):
                node = r // per_node
                near = set().union(*held[node * per_node : (node + 1) * per_node])
                fetch = wanted[r] - held[r]
                moves += len(fetch)
                inside = len([e for e in fetch if e in near])
                took = inside * cost["bytes"] / cost["intra"]
                took += (len(fetch) - inside) * cost["bytes"] / cost["inter"]
                slowest = max(slowest, took)
            seconds += slowest
        return moves, seconds

    for start in range(history, num_windows, interval):
        scored = range(start, min(start + interval, num_windows))
        sources = {
            "plain": [w for w in range(start) if any(map(any, counts[w]))][-history:],
            "all-past": range(start),
            "oracle": scored,
        }
        for name, windows in sources.items():
            if not windows:
                continue  # no load yet, no plan
            summed = add(windows)
            plan = [pack([float(x) for x in summed[layer]], slots, ranks) for layer in range(num_layers)]
            moves, seconds = move(current[name], plan)
            found[name]["moves"] += moves
            found[name]["move_s"] += seconds
            current[name] = plan
            handed = [add([w]) for w in windows] if name != "all-past" else [summed]
            each = [layer_imbalance(w[layer], plan[layer]) for w in handed for layer in range(num_layers)]
            found[name]["in"].append(sum(each) / len(each))
        for name, rows in current.items():
            for w in scored:
                each = [layer_imbalance(counts[w][layer], rows[layer]) for layer in range(num_layers)]
                loads = [served(counts[w][layer], rows[layer]) for layer in range(num_layers)]
                means, maxima = sum(sum(g) / ranks for g in loads), sum(max(g) for g in loads)
                found[name]["i"] += each
                found[name]["worst"].append(max(each))
                found[name]["sums"].append(means / maxima if maxima else 1.0)
                found[name]["time"].append(
                    sum(layer_time(counts[w][layer], rows[layer], steps[w]) for layer in range(num_layers))
                )
    return {name: _finish(item, sum(found["do-nothing"]["time"])) for name, item in found.items()}


def _finish(item, floor_time):
    values = sorted(item["i"])
    place = 0.95 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    gained = floor_time - sum(item["time"])
    return {
        "mean_imbalance": sum(values) / len(values),
        "p95_imbalance": values[low] + (place - low) * (values[high] - values[low]),
        "worst_layer": sum(item["worst"]) / len(item["worst"]),
        "mean_of_ratios": sum(1 / value for value in values) / len(values),
        "ratio_of_sums": sum(item["sums"]) / len(item["sums"]),
        "in_sample": sum(item["in"]) / len(item["in"]) if item["in"] else None,
        "moves": item["moves"],
        "layer_time_s": sum(item["time"]),
        "gained_s": gained,
        "lost_s": item["move_s"],
        "net_s": gained - item["move_s"],
    }
