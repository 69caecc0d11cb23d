"""Add tags.

Revision ID: b7d20e64c1fa
Revises: 3f1c8a5e9b20
Create Date: 2026-01-26 16:40:51
"""

import sqlalchemy as sa
from alembic import op

revision = "b7d20e64c1fa"
down_revision = "3f1c8a5e9b20"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tags",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="tags_pkey"),
        sa.UniqueConstraint("name", name="tags_name_key"),
    )
    op.create_table(
        "note_tags",
        sa.Column("note_id", sa.Integer(), nullable=False),
        sa.Column("tag_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("note_id", "tag_id", name="note_tags_pkey"),
        sa.ForeignKeyConstraint(["note_id"], ["notes.id"], name="note_tags_note_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tag_id"], ["tags.id"], name="note_tags_tag_id_fkey", ondelete="CASCADE"),
    )
    op.create_index("ix_note_tags_tag_id", "note_tags", ["tag_id"])


def downgrade() -> None:
    op.drop_table("note_tags")
    op.drop_table("tags")
