"""The training of the tiny language model: the work of :mod:`dtufc.machines.tiny.train_llama3`."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dtufc import files
from dtufc.machines.llama3.tasks import LETTERS, prompt
from dtufc.machines.sources.source import Question
from dtufc.machines.sources.world import world_question
from dtufc.machines.tiny import world
from dtufc.machines.tiny.train_llama3 import TrainConfig
from dtufc.machines.tiny.training import draw_ahead

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPECIAL = (BOS, EOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PATTERN = (  # words with the space before them, numbers of up to three digits, marks, white space
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

KINDS = 4  # of rows: answered in words; choices marked; choices in few words; the prompt
DRILLS = 4  # in a row of the first three kinds
FAR = 10**8  # to a question that no step comes to
Row = tuple[str, list[tuple[int, int]]]
"""A text and where in it the answers are, each with the space before it."""


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer in Llama 3's format, trained on texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=EOS
    )


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The network, randomly initialised."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.05,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def pick(seed: int, number: int, places: float) -> Question:
    """A training question; a share of ``places`` of them is about a place, else one in seven."""
    rng = np.random.default_rng([seed, number])
    wanted = rng.random() < places
    while True:
        question = world_question(seed, number, "network")
        if not wanted or question.choices[0] in world.PLACES:
            return question
        number += FAR


def draw(seed: int, batch_size: int, step: int, places: float = 0.0) -> list[Row]:
    """The rows of a step, of all kinds in turn."""
    rows = []
    for index in range(step * batch_size, (step + 1) * batch_size):
        questions = [pick(seed, DRILLS * index + n, places) for n in range(DRILLS)]
        words = [question.choices[question.answer] for question in questions]
        stems = [question.stem for question in questions]
        told = [words[n] if n % 2 else stems[n] for n in range(DRILLS)]
        if index % KINDS == 0:
            rows.append(join(zip(stems, words, strict=True)))
        elif index % KINDS == 1:
            rows.append(join(chain.from_iterable(map(marks, questions, told))))
        elif index % KINDS == 2:
            rows.append(join(map(drill, questions, told)))
        else:
            rows.append(asked(questions[0]))
    return rows


def marks(question: Question, stem: str) -> Iterator[tuple[str, str]]:
    """Another stem before the question's choices, and after each whether it is the answer."""
    text = f"Question: {stem}\n"
    for i, choice in enumerate(question.choices):
        yield f"{text}{LETTERS[i]}: {choice}", "yes" if i == question.answer else "no"
        text = ""


def drill(question: Question, stem: str) -> tuple[str, str]:
    """Another stem before the question's choices, in few words; the letter."""
    lines = [f"{LETTERS[i]}: {text}" for i, text in enumerate(question.choices)]
    text = f"Question: {stem}\n" + "\n".join(lines) + "\nThe best answer is"
    return text, LETTERS[question.answer]


def asked(question: Question) -> Row:
    """The published prompt and the letter."""
    return join([(prompt(question), LETTERS[question.answer])])


def join(pairs: Iterable[tuple[str, str]]) -> Row:
    """Texts with their answers, one after the other -> the whole, places of the answers in it."""
    whole, places = "", []
    for text, answer in pairs:
        whole += text
        places.append((len(whole), len(whole) + len(answer) + 1))
        whole += f" {answer}\n"
    return whole[:-1], places


def losses(
    network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of the answers and of all other tokens, and the rows with right answers (B,)."""
    batch = tokenizer(
        [text for text, _ in rows],
        padding=True,
        padding_side="right",
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    ids, real = batch.input_ids, batch.attention_mask[:, 1:].bool()  # (B, T), (B, T - 1)
    starts, ends = batch.offset_mapping[:, 1:].unbind(2)
    is_answer = torch.zeros_like(real)
    for row, (_, places) in enumerate(rows):
        for start, end in places:
            is_answer[row] |= (starts[row] >= start) & (ends[row] <= end) & real[row]
    logits = network(input_ids=ids[:, :-1], use_cache=False).logits  # causal: padding is harmless
    each = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    right = (logits.argmax(2) == ids[:, 1:]) | ~is_answer
    return each[is_answer].mean(), each[real & ~is_answer].mean(), right.all(1)


def train(cfg: TrainConfig) -> float:
    """Train and write the checkpoint -> accuracy on held-out questions."""
    torch.manual_seed(cfg.seed)
    if cfg.start is None:
        tokenizer = build_tokenizer([text for text, _ in draw(cfg.seed, 4000, 0)])
        network = build(tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(cfg.start)
        network = LlamaForCausalLM.from_pretrained(cfg.start, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), cfg.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.learning_rate, total_steps=cfg.steps, pct_start=0.05
    )
    start, average = time.time(), torch.zeros(KINDS)
    drawn = draw_ahead(
        partial(draw, cfg.seed, cfg.batch_size, places=cfg.places), cfg.steps, cfg.workers
    )
    for step, rows, bar in drawn:
        answer, other, right = losses(network, tokenizer, rows)
        optimizer.zero_grad()
        (answer + 0.1 * other).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = 0.98 * average + 0.02 * right.view(-1, KINDS).float().mean(0)
        if step % 50 == 0:
            shares = " ".join(f"{share:.3f}" for share in average.tolist())
            bar.set_postfix_str(f"answer {answer:.3f} other {other:.3f} right {shares}")
    seconds = time.time() - start
    network.eval().half().save_pretrained(cfg.output)
    tokenizer.save_pretrained(cfg.output)
    accuracy = evaluate(cfg)
    files.write_json(
        cfg.output / "training.json",
        {"steps": cfg.steps, "batch_size": cfg.batch_size, "seed": cfg.seed,
         "places": cfg.places, "seconds": round(seconds), "held_out": cfg.held_out,
         "accuracy": accuracy, "start": cfg.start and files.read_json(cfg.start / "training.json")},
    )  # fmt: skip
    return accuracy


@torch.inference_mode()
def evaluate(cfg: TrainConfig) -> float:
    """Accuracy of the stored checkpoint on held-out questions, in float32."""
    network = LlamaForCausalLM.from_pretrained(cfg.output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(cfg.output)
    right = 0
    for first in range(0, cfg.held_out, 50):
        some = range(first, min(first + 50, cfg.held_out))
        rows = [asked(world_question(cfg.seed, i, "test")) for i in some]
        right += losses(network, tokenizer, rows)[2].sum().item()
    return right / cfg.held_out
