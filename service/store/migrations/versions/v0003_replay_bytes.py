"""What each answer to repeat takes, so that an owner's can be bounded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # With a default: an older process may still be writing while a newer one starts.
    op.add_column(
        "replays", sa.Column("bytes", sa.Integer, nullable=False, server_default=sa.text("0"))
    )
    op.execute("UPDATE replays SET bytes = length(body)")
    op.create_index(
        "ix_replays_owner_created_at_bytes", "replays", ["owner", "created_at", "bytes"]
    )
