"""Index notes by age, while the app goes on writing.

Revision ID: c46b1d9e20f8
Revises: 58e9af03d7c4
Create Date: 2026-02-23 08:27:19
"""

from alembic import op

revision = "c46b1d9e20f8"
down_revision = "58e9af03d7c4"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # A build that was cut off leaves an INVALID index of this name behind.
        op.drop_index("ix_notes_created_at", "notes", postgresql_concurrently=True, if_exists=True)
        op.create_index("ix_notes_created_at", "notes", ["created_at"], postgresql_concurrently=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_notes_created_at", "notes", postgresql_concurrently=True, if_exists=True)
