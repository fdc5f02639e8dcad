"""Stand-in for the published repository: the manager of learnt words, for CLIP's encoder.

As there, what it is given is what it writes into: token ids and token embeddings both come back changed.
"""
import torch
from torch import nn

END = 49407
PROGRESSIVE_SCALE = 2000


def get_clip_token_for_string(tokenizer, string):
    ids = tokenizer(string)["input_ids"][0]
    assert int((ids != END).sum()) == 2, f"'{string}' is not a single token"
    return ids[1]


class EmbeddingManager(nn.Module):
    """Called with token ids (B, L) and token embeddings (B, L, d): the embeddings, with the vectors of placeholders in."""

    def __init__(
        self, embedder, placeholder_strings=None, initializer_words=None, per_image_tokens=False, num_vectors_per_token=1, progressive_words=False, **kwargs
    ):
        super().__init__()
        assert not per_image_tokens
        self.string_to_token_dict = {}
        self.string_to_param_dict, self.initial_embeddings = nn.ParameterDict(), nn.ParameterDict()
        self.progressive_words, self.progressive_counter, self.max_vectors_per_token = progressive_words, 0, num_vectors_per_token
        embeddings = embedder.transformer.text_model.embeddings
        width = embeddings.token_embedding.weight.shape[1]
        for number, placeholder in enumerate(placeholder_strings or ["*"]):
            self.string_to_token_dict[placeholder] = get_clip_token_for_string(embedder.tokenizer, placeholder)
            if initializer_words and number < len(initializer_words):
                token = get_clip_token_for_string(embedder.tokenizer, initializer_words[number])
                start = (embeddings.token_embedding.weight[token] + embeddings.position_embedding.weight[0]).detach()
                start = start.repeat(num_vectors_per_token, 1)
                self.initial_embeddings[placeholder] = nn.Parameter(start.clone(), requires_grad=False)
            else:
                start = torch.rand(num_vectors_per_token, width)
            self.string_to_param_dict[placeholder] = nn.Parameter(start)

    def forward(self, tokenized_text, embedded_text):
        for placeholder, token in self.string_to_token_dict.items():
            vectors = self.string_to_param_dict[placeholder].to(embedded_text.device)
            where = tokenized_text == token.to(tokenized_text.device)
            if self.max_vectors_per_token == 1:
                embedded_text[where] = vectors
                continue
            if self.progressive_words:
                self.progressive_counter += 1
                vectors = vectors[: 1 + self.progressive_counter // PROGRESSIVE_SCALE]
            rows, columns = where.nonzero(as_tuple=True)
            for row, column in sorted(zip(rows.tolist(), columns.tolist()), key=lambda place: -place[1]):
                self._insert(tokenized_text, embedded_text, row, column, token, vectors)
        return embedded_text

    @staticmethod
    def _insert(ids, embedded, row, column, token, vectors):
        """The vectors take the place of one id; what follows moves to the right, over the edge."""
        length = ids.shape[1]
        tokens = token.to(ids.device).repeat(len(vectors))
        ids[row] = torch.cat([ids[row, :column], tokens, ids[row, column + 1 :]])[:length]
        embedded[row] = torch.cat([embedded[row, :column], vectors, embedded[row, column + 1 :]])[:length]

    def save(self, ckpt_path):
        torch.save({"string_to_token": self.string_to_token_dict, "string_to_param": self.string_to_param_dict}, ckpt_path)

    def load(self, ckpt_path):
        saved = torch.load(ckpt_path, map_location="cpu")
        self.string_to_token_dict, self.string_to_param_dict = saved["string_to_token"], saved["string_to_param"]

    def get_embedding_norms_squared(self):
        return torch.cat(list(self.string_to_param_dict.values())).pow(2).sum(dim=-1)

    def embedding_parameters(self):
        return self.string_to_param_dict.parameters()

    def embedding_to_coarse_loss(self):
        moved = [self.string_to_param_dict[key] - start for key, start in self.initial_embeddings.items()]
        return sum(by @ by.t() for by in moved) / len(moved)
