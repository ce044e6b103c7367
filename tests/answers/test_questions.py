import torch

from fedpeft.answers.questions import Question, question_of


class Rows:
    """A table of one batch of padded rows; 0 pads."""

    def __init__(self, tokens, labels):
        self.tokens, self.labels = torch.tensor(tokens), torch.tensor(labels)

    def __len__(self):
        return len(self.tokens)

    def batch(self, indices, *, seed):
        ids = self.tokens[list(indices)]
        mask = (ids != 0).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": self.labels[list(indices)]}


def test_the_last_learnt_tokens_are_the_answer_to_all_before():
    one_turn = Rows([[1, 5, 6, 7, 2, 0]], [[-100, -100, -100, 7, 2, -100]])
    assert question_of(one_turn, 0) == Question(0, (1, 5, 6), (7, 2))
    two_turns = Rows([[1, 5, 7, 6, 8, 2]], [[-100, -100, 7, -100, 8, 2]])
    assert question_of(two_turns, 0) == Question(0, (1, 5, 7, 6), (8, 2))
    ends_unlearnt = Rows([[1, 5, 7, 9]], [[-100, -100, 7, -100]])
    assert question_of(ends_unlearnt, 0) == Question(0, (1, 5), (7,))


def test_a_document_asks_nothing():
    assert question_of(Rows([[1, 5, 6]], [[1, 5, 6]]), 0) is None
    assert question_of(Rows([[1, 5, 6]], [[-100, -100, -100]]), 0) is None
