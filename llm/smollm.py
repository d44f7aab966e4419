"""SmolLM2-135M-Instruct in process: it chooses among supported answers by likelihood.

A model of this size repeats itself and parrots its prompt when it writes freely. So it reads the few-shot prompt and
the user's record, and every candidate of every facet is scored in one forward pass:

    few-shot prefix | record | "Customer:" | " home decorator" | " keen home baker" | ... | "Interests:" | ...
    (shared KV)

Each candidate is a branch of a tree: its tokens see the prefix, one record, its cue and their own branch, at the
positions they would have alone. A candidate's score is what the record adds to its mean token log-likelihood over a
neutral record (domain-conditional PMI: Holtzman et al., arXiv 2104.08315, section 3), plus a little for the evidence
in the history. One user is one pass of its own, and the neutral record is scored in passes of one fixed size whose
results are kept, so an answer does not depend on what else is in the batch or was asked before.

B = 1 user, Q tokens of the tree, P tokens of the prefix.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftline.configs.errors import MissingModelError
from driftline.configs.settings import LLM
from driftline.graph.view import FACETS
from driftline.llm.client import answer_lines, choose
from driftline.llm.encoder import torch_threads
from driftline.llm.fetch import SMOLLM, model_directory
from driftline.llm.prompts import ProfilePrompt, Prompts, example_answers, record_text

_KEPT = 50_000
"""Tokenised texts and neutral scores that are kept in memory."""
_NEUTRAL_TOKENS = 96
_Asked = tuple[str, str]
"""(facet, candidate)"""


@dataclass(slots=True)
class _Tree:
    """Tokens of one pass, each with its parent; a root's parent is -1, the end of the prefix."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def grow(self, tokens: Sequence[int], parent: int) -> int:
        """Appends a chain below a node; returns its last node."""
        for token in tokens:
            self.tokens.append(token)
            self.parents.append(parent)
            parent = len(self.tokens) - 1
        return parent

    def depths_and_mask(self) -> tuple[Tensor, Tensor]:
        """Depth [Q] int64 of each node from 0, and [Q, Q] bool: row sees column (ancestors and itself)."""
        n = len(self.tokens)
        sees = torch.zeros(n, n, dtype=torch.bool)
        depths = torch.zeros(n, dtype=torch.long)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node] = sees[parent]
                depths[node] = depths[parent] + 1
            sees[node, node] = True
        return depths, sees


@dataclass(frozen=True, slots=True)
class _Branch:
    """One candidate below one record: the node before it, and its own nodes."""

    before: int
    nodes: range


class SmolLMClient:
    """The default client: no network, one thread, deterministic on one kind of machine.

    Args:
        directory: of the weights; default: where `llm.fetch` put them.

    Raises:
        MissingModelError: the weights are not there or can't be read.
    """

    source = "llm:smollm2-135m"

    def __init__(self, settings: LLM, directory: Path | None = None) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import AutoModelForCausalLM, AutoTokenizer, logging

        directory = directory or model_directory(SMOLLM)
        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory)
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=_dtype(settings), attn_implementation="sdpa", use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise MissingModelError(
                f"{directory} does not hold a readable language model ({error}); delete it and run `make setup`"
            ) from None
        finally:
            logging.set_verbosity(verbosity)
        self._model: Any = model.eval()
        self._evidence_weight, self._threads = settings.evidence_weight, settings.threads
        self._prefixes: dict[str, tuple[Any, int]] = {}
        self._ids: dict[str, list[int]] = {}
        self._neutral: dict[str, dict[_Asked, float]] = {}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[ProfilePrompt]) -> list[str]:
        """The likeliest supported answers for each prompt."""
        answers = []
        for prompt in prompts:
            scores = self.score(prompt)
            answers.append(
                answer_lines(prompt.prompts, {q.facet: choose(q, scores[q.facet]) for q in prompt.questions})
            )
        return answers

    @torch.inference_mode()
    def score(self, prompt: ProfilePrompt) -> dict[str, list[float]]:
        """Scores of the candidates of each facet, in nats a token."""
        asked = [(question.facet, text) for question in prompt.questions for text, _ in question.candidates]
        with torch_threads(self._threads):
            tree, branches = self._tree(prompt.record, asked, prompt.prompts)
            informed = dict(zip(asked, self._log_likelihoods(tree, branches, prompt.prompts), strict=True))
            neutral = self._neutral_likelihoods(asked, prompt.prompts)
        return {
            question.facet: [
                informed[question.facet, text]
                - neutral[question.facet, text]
                + self._evidence_weight * math.log(events)
                for text, events in question.candidates
            ]
            for question in prompt.questions
        }

    def _neutral_likelihoods(self, asked: list[_Asked], prompts: Prompts) -> dict[_Asked, float]:
        """Mean token log-likelihoods below the neutral record, from the ones kept or from passes of _NEUTRAL_TOKENS."""
        kept = self._neutral.setdefault(prompts.sha256, {})
        if len(kept) > _KEPT:
            kept.clear()
        missing = [pair for pair in dict.fromkeys(asked) if pair not in kept]
        while missing:
            room = _NEUTRAL_TOKENS - len(self._tree(prompts.neutral, [], prompts)[0].tokens)
            n = 0
            while n < len(missing) and (room := room - len(self._encode(" " + missing[n][1]))) >= 0:
                n += 1
            part, missing = missing[: max(n, 1)], missing[max(n, 1) :]
            tree, branches = self._tree(prompts.neutral, part, prompts)
            tree.grow([0] * (_NEUTRAL_TOKENS - len(tree.tokens)), -1)
            kept.update(zip(part, self._log_likelihoods(tree, branches, prompts), strict=True))
        return {pair: kept[pair] for pair in asked}

    def _tree(self, record: str, asked: list[_Asked], prompts: Prompts) -> tuple[_Tree, list[_Branch]]:
        """A record, the cues of all facets below it and the asked candidates below those."""
        tree = _Tree()
        root = tree.grow(self._encode(record + "\n", keep=False), -1)
        cues = {facet: tree.grow(self._encode(prompts.cues[facet]), root) for facet in FACETS}
        branches = []
        for facet, text in asked:
            start = len(tree.tokens)
            tree.grow(self._encode(" " + text), cues[facet])
            branches.append(_Branch(cues[facet], range(start, len(tree.tokens))))
        return tree, branches

    def _log_likelihoods(self, tree: _Tree, branches: list[_Branch], prompts: Prompts) -> list[float]:
        """Mean token log-likelihood of each branch given what stands above it."""
        if not branches:
            return []
        cache, length = self._prefix(prompts)
        depths, sees = tree.depths_and_mask()
        mask = torch.zeros(len(tree.tokens), length + len(tree.tokens), dtype=self._model.dtype)
        mask[:, length:].masked_fill_(~sees, torch.finfo(self._model.dtype).min)
        out = self._model.model(
            input_ids=torch.tensor([tree.tokens]),
            attention_mask=mask[None, None],  # [B, 1, Q, P + Q]
            position_ids=(depths + length)[None],
            past_key_values=cache,
            use_cache=True,
        )
        cache.crop(-len(tree.tokens))
        states = out.last_hidden_state[0]  # [Q, width]
        sources = [s for b in branches for s in (b.before, *b.nodes[:-1])]
        targets = [tree.tokens[node] for b in branches for node in b.nodes]
        unique = sorted(set(sources))
        rows = {node: i for i, node in enumerate(unique)}
        logits = self._model.lm_head(states[unique]).float()  # [u, vocabulary]
        norm = logits.logsumexp(1)
        at = torch.tensor([rows[s] for s in sources])
        each = (logits[at, torch.tensor(targets)] - norm[at]).tolist()
        means, start = [], 0
        for branch in branches:
            n = len(branch.nodes)
            means.append(sum(each[start : start + n]) / n)
            start += n
        return means

    def _prefix(self, prompts: Prompts) -> tuple[Any, int]:
        """Keys and values of the few-shot prompt, computed once for a prompt file, and its length P."""
        if prompts.sha256 not in self._prefixes:
            from transformers import DynamicCache

            ids = self._encode(few_shot(prompts), keep=False)
            cache = DynamicCache()
            self._model.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
            self._prefixes[prompts.sha256] = (cache, len(ids))
        return self._prefixes[prompts.sha256]

    def _encode(self, text: str, keep: bool = True) -> list[int]:
        if text in self._ids:
            return self._ids[text]
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if keep and len(self._ids) < _KEPT:
            self._ids[text] = ids
        return ids


def few_shot(prompts: Prompts) -> str:
    """Instruction and examples as plain text that the next record continues."""
    parts = [prompts.instruction]
    for example in prompts.examples:
        record = record_text(prompts, example.titles, example.domain, example.level)
        parts.append(f"{record}\n{example_answers(prompts, example)}")
    return "\n\n".join(parts) + "\n\n"


def _dtype(settings: LLM) -> torch.dtype:
    if settings.dtype != "auto":
        return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if supported else torch.float32
