"""Create notes.

Revision ID: 3f1c8a5e9b20
Revises:
Create Date: 2026-01-12 09:14:03
"""

import sqlalchemy as sa
from alembic import op

revision = "3f1c8a5e9b20"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="notes_pkey"),
    )


def downgrade() -> None:
    op.drop_table("notes")
