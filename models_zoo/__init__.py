"""What the learners are: the `adapt` / `predict` contract, the learners and the trained entries.

Nothing here imports `service` or `training`; reading a card imports no PyTorch.
"""
