"""The exceptions that make a mix: which tensors get another type than the mix's default, and where.

One table, `RULES`, from mix and role to cases. A case is a type and its conditions; the first case whose
conditions all hold decides, and where none does, the default stays. Nobody derived these rules; they were found
by trying. They are llama.cpp's (tree of ggml 0.25.3), so that the files are the same to the byte; older releases
treated the fused `attn_qkv` of Phi-3 differently.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto


class Role(Enum):
    """What a tensor does in the model, as far as the rules care."""

    TOKEN_EMBEDDING = auto()
    OUTPUT = auto()
    ATTENTION_VALUE = auto()
    ATTENTION_KEY = auto()
    ATTENTION_QUERY = auto()
    ATTENTION_OUTPUT = auto()
    FFN_UP = auto()
    FFN_GATE = auto()
    FFN_DOWN = auto()
    OTHER = auto()


# The first part that is in the name decides. Phi-3's fused query-key-value matrix counts as a value matrix.
_ROLE_OF_PART = {
    "attn_qkv.weight": Role.ATTENTION_VALUE,
    "attn_kv_b.weight": Role.ATTENTION_VALUE,
    "attn_v.weight": Role.ATTENTION_VALUE,
    "attn_k.weight": Role.ATTENTION_KEY,
    "attn_q.weight": Role.ATTENTION_QUERY,
    "attn_output.weight": Role.ATTENTION_OUTPUT,
    "ffn_up": Role.FFN_UP,
    "ffn_gate": Role.FFN_GATE,
    "ffn_down": Role.FFN_DOWN,
}


def role(name: str) -> Role:
    """Tell from its name what a tensor does."""
    if name == "output.weight":
        return Role.OUTPUT
    if name == "token_embd.weight":
        return Role.TOKEN_EMBEDDING
    return next((role for part, role in _ROLE_OF_PART.items() if part in name), Role.OTHER)


# ---- conditions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and in what model.

    layer           from 0, of n_layers
    n_gqa           query heads that share a head of keys and values
    n_experts       of the model; 0 where it has none
    is_stack        the tensor holds the matrices of all experts
    has_importance  there is an importance matrix
    """

    layer: int
    n_layers: int
    n_gqa: int
    n_experts: int
    is_stack: bool
    has_importance: bool


Condition = Callable[[Place], bool]
Case = tuple[str, *tuple[Condition, ...]]
Rules = dict[Role, list[Case]]


def first_two(place: Place) -> bool:
    """One of the first two layers."""
    return place.layer < 2


def first_four(place: Place) -> bool:
    """One of the first four layers."""
    return place.layer < 4


def first_sixteenth(place: Place) -> bool:
    """A layer of the first sixteenth of the model."""
    return place.layer < place.n_layers // 16


def first_eighth(place: Place) -> bool:
    """A layer of the first eighth of the model."""
    return place.layer < place.n_layers // 8


def middle(place: Place) -> bool:
    """Neither the first nor the last eighth."""
    return place.n_layers // 8 <= place.layer < 7 * place.n_layers // 8


def ends_and_every_third(place: Place) -> bool:
    """The first eighth, the last, and a third of the layers in between."""
    return not middle(place) or (place.layer - place.n_layers // 8) % 3 == 2


def shared_values(place: Place) -> bool:
    """Four or more query heads share a head of values, which makes the matrix small and each error count."""
    return place.n_gqa >= 4


def four_experts(place: Place) -> bool:
    """Four experts or more."""
    return place.n_experts >= 4


def eight_experts(place: Place) -> bool:
    """Exactly eight experts, as Mixtral has: attention is small beside them, so more bits cost little."""
    return place.n_experts == 8


def one_matrix(place: Place) -> bool:
    """No stack of experts."""
    return not place.is_stack


def with_importance(place: Place) -> bool:
    """There is an importance matrix."""
    return place.has_importance


def without_importance(place: Place) -> bool:
    """There is no importance matrix."""
    return not place.has_importance


# ---- the table ------------------------------------------------------------------------------------------


def _below_3_bits(better: str, *attention_output: str) -> Rules:
    """The rules of IQ1 and IQ2: `better` for what suffers most; the type of attention's output, if another."""
    return {
        Role.OUTPUT: [("Q5_K",)],
        Role.TOKEN_EMBEDDING: [(better,)],
        Role.ATTENTION_VALUE: [("Q4_K", shared_values), ("Q4_K", four_experts), (better,)],
        Role.ATTENTION_KEY: [("Q4_K", eight_experts)],
        Role.ATTENTION_OUTPUT: [("Q5_K", eight_experts), *((type,) for type in attention_output)],
        Role.FFN_DOWN: [(better, first_eighth)],
    }


BELOW_3_BITS: dict[str, Rules] = {
    "IQ1_S": _below_3_bits("Q2_K", "IQ2_XXS"),
    "IQ1_M": _below_3_bits("Q2_K", "IQ2_XXS"),
    "IQ2_XXS": _below_3_bits("Q2_K"),
    "IQ2_XS": _below_3_bits("Q2_K"),
    "IQ2_S": _below_3_bits("IQ3_S", "IQ3_S"),
    "IQ2_M": _below_3_bits("IQ3_S", "IQ3_S"),
}

# The matrix that makes the logits has Q6_K where its mix says nothing else: its every error is one of a logit.
OUTPUT_TYPE = "Q6_K"

RULES: dict[str, Rules] = BELOW_3_BITS | {
    "Q8_0": {Role.OUTPUT: [("Q8_0",)]},
    # Q4_1 and Q5_1 go wrong here without an importance matrix
    "Q5_0": {Role.FFN_DOWN: [("Q5_1", first_eighth, with_importance)]},
    "Q4_0": {Role.FFN_DOWN: [("Q4_1", first_eighth, with_importance)]},
    "Q5_K_M": {
        Role.ATTENTION_VALUE: [("Q6_K", ends_and_every_third)],
        Role.FFN_DOWN: [("Q6_K", ends_and_every_third)],
    },
    "Q4_K_M": {
        Role.ATTENTION_VALUE: [("Q6_K", ends_and_every_third)],
        Role.FFN_DOWN: [("Q6_K", ends_and_every_third)],
    },
    "Q4_K_S": {
        Role.ATTENTION_VALUE: [("Q5_K", first_four)],
        Role.FFN_DOWN: [("Q5_K", first_eighth)],
    },
    "Q3_K_L": {
        Role.ATTENTION_VALUE: [("Q5_K",)],
        Role.ATTENTION_OUTPUT: [("Q3_K", eight_experts), ("Q5_K",)],
        Role.FFN_DOWN: [("Q5_K",)],
    },
    "Q3_K_M": {
        Role.ATTENTION_VALUE: [("Q5_K", first_two), ("Q4_K",)],
        Role.ATTENTION_OUTPUT: [("Q4_K",)],
        Role.FFN_DOWN: [("Q5_K", first_sixteenth), ("Q4_K",)],
    },
    "Q2_K": {
        Role.ATTENTION_VALUE: [("Q4_K", shared_values), ("Q3_K",)],
        Role.ATTENTION_OUTPUT: [("Q3_K",)],
        Role.FFN_DOWN: [("Q3_K",)],
    },
    "Q2_K_S": {
        Role.ATTENTION_VALUE: [("Q4_K", shared_values)],
        Role.FFN_DOWN: [("Q4_K", first_eighth)],
    },
    "IQ4_NL": {
        Role.ATTENTION_VALUE: [("Q5_K", shared_values)],
        Role.FFN_DOWN: [("Q5_K", first_eighth, without_importance)],
    },
    "IQ4_XS": {
        Role.ATTENTION_VALUE: [("Q5_K", shared_values)],
        Role.FFN_DOWN: [("Q5_K", first_eighth, without_importance)],
    },
    "IQ3_M": {
        Role.ATTENTION_VALUE: [("Q4_K",)],
        Role.ATTENTION_OUTPUT: [("Q4_K",)],
        Role.FFN_DOWN: [("Q4_K", first_eighth), ("Q4_K", eight_experts, ends_and_every_third)],
    },
    "IQ3_S": {Role.ATTENTION_VALUE: [("Q4_K", shared_values)]},
    "IQ3_XS": {
        Role.ATTENTION_VALUE: [("Q4_K", shared_values)],
        Role.ATTENTION_KEY: [("IQ3_XXS",)],
        Role.ATTENTION_QUERY: [("IQ3_XXS",)],
        Role.FFN_UP: [("IQ3_XXS", middle)],
        Role.FFN_GATE: [("IQ3_XXS", middle)],
    },
    "IQ3_XXS": {
        Role.OUTPUT: [("Q5_K",)],
        Role.TOKEN_EMBEDDING: [("IQ3_S",)],
        Role.ATTENTION_VALUE: [("Q4_K", shared_values), ("IQ3_S", without_importance)],
        Role.ATTENTION_KEY: [("IQ2_S",)],
        Role.ATTENTION_QUERY: [("IQ2_S",)],
        Role.ATTENTION_OUTPUT: [("IQ3_S",)],
        Role.FFN_DOWN: [("Q4_K", first_eighth, without_importance), ("Q3_K", without_importance)],
    },
    "TQ1_0": {Role.TOKEN_EMBEDDING: [("Q4_K",)]},
    "TQ2_0": {Role.TOKEN_EMBEDDING: [("Q4_K",)]},
    "Q2_0": {Role.TOKEN_EMBEDDING: [("Q4_K",)]},
    "MXFP4_MOE": {**{of: [("Q8_0", one_matrix)] for of in Role}, Role.OUTPUT: [("Q8_0",)]},
}

# These come first in every mix but IQ1, IQ2 and MXFP4_MOE, which have their own rules for many experts.
EIGHT_EXPERTS: Rules = {
    Role.ATTENTION_VALUE: [("Q8_0", eight_experts)],
    Role.ATTENTION_KEY: [("Q8_0", eight_experts)],
}
# … and this one in some of them.
EIGHT_EXPERTS_OUTPUT: Case = ("Q5_K", eight_experts)
_BIGGER_OUTPUT = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"} | {
    "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS",
}  # fmt: skip


def cases(mix_name: str, of: Role) -> list[Case]:
    """The cases of a mix for a role, in the order in which they are tried."""
    own = RULES.get(mix_name, {}).get(of, [])
    if mix_name in BELOW_3_BITS or mix_name == "MXFP4_MOE":
        return own
    first = EIGHT_EXPERTS.get(of, [])
    if of is Role.ATTENTION_OUTPUT and mix_name in _BIGGER_OUTPUT:
        first = [EIGHT_EXPERTS_OUTPUT]
    return [*first, *own]


# ---- shapes and needs -----------------------------------------------------------------------------------

# Blocks of 256 do not divide every row. Then a type with blocks of 32 steps in, of no fewer bits; then F16.
FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

# Their quantizers do not work without importance.
CANNOT_WITHOUT_IMPORTANCE = {"IQ1_S", "IQ2_XXS", "IQ2_XS"}
# Theirs do, but what comes out is no model any more.
BAD_WITHOUT_IMPORTANCE = {"IQ1_M", "IQ2_S", "IQ3_XXS"}


def needs_importance(name: str, type_name: str, mix_name: str) -> bool:
    """Whether a tensor of this name and type must not be quantized blindly.

    As llama.cpp has it: Q2_K only in a Q2_K_S file; never the embedding and the output, of which no importance
    is gathered, unless the type cannot do without at all.
    """
    if type_name in CANNOT_WITHOUT_IMPORTANCE:
        return True
    if role(name) in (Role.TOKEN_EMBEDDING, Role.OUTPUT):
        return False
    return type_name in BAD_WITHOUT_IMPORTANCE or (type_name == "Q2_K" and mix_name == "Q2_K_S")
