"""The model in process: real weights, real answers."""

import pytest
from tests.llm.conftest import shop_request

from driftline.configs.errors import MissingModelError
from driftline.configs.settings import LLM, Profiles
from driftline.graph.view import FACETS
from driftline.llm.clients import make_client
from driftline.llm.facets import evidence_of, make_prompt
from driftline.llm.generator import ProfileGenerator
from driftline.llm.prompts import load_prompts
from driftline.llm.smollm import SmolLMClient, _Tree
from driftline.llm.titles import Lexicon


def prompt_of(request):
    prompts = load_prompts("ecommerce")
    lexicon = Lexicon.of(prompts)
    return make_prompt(request, evidence_of(request, prompts, lexicon), prompts, lexicon, Profiles())


def test_a_baker_gets_a_profile_from_the_model_that_the_history_supports(smollm):
    profile = ProfileGenerator(smollm, Profiles()).generate([shop_request()])[0]
    assert profile.source == "llm:smollm2-135m"
    assert profile.facets["crowd"] == "keen home baker"
    assert "cake" in profile.facets["interests"]
    assert set(profile.facet_sources) == set(FACETS)
    assert profile.facet_sources["crowd"] == "llm"


def test_an_answer_does_not_depend_on_the_batch_or_on_earlier_prompts(smollm):
    prompts = [prompt_of(shop_request(items=items)) for items in ("12345", "78", "134", "2478")]
    together = smollm.generate(prompts)
    fresh = SmolLMClient(LLM())
    assert [fresh.generate([prompt])[0] for prompt in reversed(prompts)] == together[::-1]


def test_a_branch_of_the_tree_scores_as_it_does_alone(smollm):
    """Parity: one pass with a tree mask against one plain pass for each candidate."""
    torch = pytest.importorskip("torch")
    exact = SmolLMClient(LLM(dtype="float32"))
    prompt = prompt_of(shop_request())
    asked = [(q.facet, text) for q in prompt.questions for text, _ in q.candidates]
    tree, branches = exact._tree(prompt.record, asked, prompt.prompts)
    with torch.inference_mode():
        scores = exact._log_likelihoods(tree, branches, prompt.prompts)
        from driftline.llm.smollm import few_shot

        for (facet, text), score in list(zip(asked, scores, strict=True))[::7]:
            parts = [few_shot(prompt.prompts), prompt.record + "\n", prompt.prompts.cues[facet], " " + text]
            ids = [exact._encode(part) for part in parts]
            flat = torch.tensor([[token for part in ids for token in part]])
            logits = exact._model(flat).logits[0].log_softmax(1)
            n = len(ids[-1])
            alone = logits[torch.arange(flat.shape[1] - n - 1, flat.shape[1] - 1), flat[0, -n:]].mean()
            assert float(alone) == pytest.approx(score, abs=2e-4)


def test_a_node_of_the_tree_sees_its_ancestors_and_itself_only():
    tree = _Tree()
    root = tree.grow([1, 2], -1)
    tree.grow([3], root)
    tree.grow([4, 5], root)
    depths, sees = tree.depths_and_mask()
    assert depths.tolist() == [0, 1, 2, 2, 3]
    assert sees.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]


def test_a_model_that_was_not_fetched_is_one_clear_message(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFTLINE_MODELS", str(tmp_path))
    with pytest.raises(MissingModelError, match=r"smollm2-135m.*run `make setup`"):
        make_client(LLM())
