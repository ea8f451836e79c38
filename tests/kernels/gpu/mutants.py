"""Kernels broken in small ways. Each must be noticed by a check, or the checks prove nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one source."""

    name: str
    module: str
    operator: str
    old: str
    new: str


MUTANTS = (
    Mutant("the norm divides by the padded width", "add_rms_norm", "add_rms_norm", "/ WIDTH + eps", "/ BLOCK + eps"),
    Mutant("the residual is normed before it is rounded", "add_rms_norm", "add_rms_norm",
           "tl.store(residual + row + column, r, mask=inside)", "tl.store(residual + row + column, r * 1.0001, mask=inside)"),
    Mutant("a row ends in its neighbour", "add_rms_norm", "add_rms_norm", "inside = column < WIDTH", "inside = column < BLOCK"),
    Mutant("gate and up change places", "silu_mul", "silu_mul", "gate / (1.0 + tl.exp(-gate)) * up", "up / (1.0 + tl.exp(-up)) * gate"),
    Mutant("the last columns are left out", "silu_mul", "silu_mul", "inside = column < WIDTH", "inside = column < WIDTH - 1"),
    Mutant("keys are rotated backwards", "rope_write", "rope_write", "return a * cos - b * sin, b * cos + a * sin",
           "return a * cos + b * sin, b * cos - a * sin"),
    Mutant("keys take the queries' norm", "rope_write", "rope_write", "tl.load(key + HALF).to(tl.float32), k_norm",
           "tl.load(key + HALF).to(tl.float32), q_norm"),
    Mutant("a slot below zero is written", "rope_write", "rope_write", "if slot >= 0:", "if slot >= -1:"),
    Mutant("values are the keys", "rope_write", "rope_write", "value = key + KV_HEADS * DIM", "value = key"),
    Mutant("blocks are token-major", "rope_write", "rope_write", "((slot // BLOCK_SIZE * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE) * DIM",
           "((slot // BLOCK_SIZE * BLOCK_SIZE + slot % BLOCK_SIZE) * KV_HEADS + head) * DIM"),
    Mutant("a lost token is not told", "lookup", "input_ids", "lost + token, (chained & (taken < 0))", "lost + token, (chained & (taken < -1))"),
    Mutant("known ids are replaced", "lookup", "input_ids", "ids = tl.where(chained, taken, host)", "ids = tl.where(inside, taken, host)"),
    Mutant("padding is kept", "lookup", "keep_sampled", "mask=row >= 0)", "mask=row >= -1)"),
    Mutant("a slot past the context is read", "decode_attention", "decode_attention", "seen = n < end", "seen = n <= end"),
    Mutant("the last slot is not read", "decode_attention", "decode_attention", "end = tl.minimum(begin + SPLIT, context)",
           "end = tl.minimum(begin + SPLIT, context - 1)"),
    Mutant("sums are not rescaled", "decode_attention", "decode_attention", "v, acc * keep[:, None]", "v, acc"),
    Mutant("splits are weighed alike", "decode_attention", "decode_attention", "tl.exp2((tops - new_top) * scale)",
           "tl.exp2((tops - tops) * scale)"),
    Mutant("a split is forgotten", "decode_attention", "decode_attention", "inside = split < count", "inside = split < count - 1"),
    Mutant("a padding row divides by nothing", "decode_attention", "decode_attention", "tl.where(count > 0, acc / total, 0.0)",
           "acc / total"),
    Mutant("tables are taken to be as wide as they are shown", "decode_attention", "decode_attention",
           "sums, stats, tables.stride(0)", "sums, stats, tables.shape[1]"),
    Mutant("all heads read the first one's keys", "decode_attention", "decode_attention", "slot = ((block * KV_HEADS + head)",
           "slot = ((block * KV_HEADS)"),
    Mutant("a query sees the token after it", "prefill_attention", "prefill_attention", "n[None, :] <= position[:, None]",
           "n[None, :] <= position[:, None] + 1"),
    Mutant("a query does not see itself", "prefill_attention", "prefill_attention", "n[None, :] <= position[:, None]",
           "n[None, :] < position[:, None]"),
    Mutant("a tile is unmasked too early", "prefill_attention", "prefill_attention", "(start + first + 1) // TILE * TILE",
           "(start + first + 2) // TILE * TILE"),
    Mutant("positions begin at zero in every chunk", "prefill_attention", "prefill_attention", "position = start + query",
           "position = query"),
    Mutant("requests share their first block", "prefill_attention", "prefill_attention", "(begin // BLOCK_Q + request)",
           "(begin // BLOCK_Q)"),
    Mutant("queries past the end are written", "prefill_attention", "prefill_attention", "inside = (query < count) &", "inside = (query < count + 1) &"),
    Mutant("too few programs", "prefill_attention", "prefill_attention", "return tokens // block_q + requests",
           "return max(1, tokens // block_q)"),
    Mutant("noise forgets the position", "sampler", "sample", "(position + 1) * 0x9E3779B97F4A7C15", "position * 0x9E3779B97F4A7C15"),
    Mutant("noise has fewer bits", "sampler", "sample", "(mixed >> 11)", "(mixed >> 12)"),
    Mutant("top-k keeps one too few", "sampler", "sample", "k.to(tl.float64), top, heat", "k.to(tl.float64) - 1.0, top, heat"),
    Mutant("top-p is no share of what is kept", "sampler", "sample", "total * p, top, heat, least", "p, top, heat, least"),
    Mutant("the search stops with two tokens left", "sampler", "sample", "(between > 1.0)", "(between > 2.0)"),
    Mutant("min-p is forgotten in the masses", "sampler", "sample", "_kept(x, top, heat, tl.load(min_p + row), threshold, SHIFT)\n    tl.store",
           "_kept(x, top, heat, 0.0, threshold, SHIFT)\n    tl.store"),
    Mutant("the part's beginning is forgotten", "sampler", "sample", "column, target - before, PART", "column, target, PART"),
    Mutant("of equal logits the last wins", "sampler", "sample", "place = tl.min(tl.where(x == top, column, VOCAB), 0)",
           "place = tl.max(tl.where(x == top, column, 0), 0)"),
    Mutant("an infinity is let through", "sampler", "sample", 'wrong = (x != x) | (x == float("inf"))', "wrong = x != x"),
    Mutant("a ban is a fault", "sampler", "sample", "if not BANNED:", "if BANNED or not BANNED:"),
)  # fmt: skip
"""By operator, in the order of a step."""
