"""Give every note a slug.

Revision ID: 58e9af03d7c4
Revises: b7d20e64c1fa
Create Date: 2026-02-09 11:02:37
"""

import sqlalchemy as sa
from alembic import op

revision = "58e9af03d7c4"
down_revision = "b7d20e64c1fa"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("notes", sa.Column("slug", sa.Text(), nullable=True))
    # What slug_of() does, as it was on this day: a migration must not change with the app's code.
    op.execute(
        r"""
        UPDATE notes
        SET slug = trim('-' FROM regexp_replace(lower(title || ' ' || id), '[^a-z0-9]+', '-', 'g'))
        """
    )
    op.alter_column("notes", "slug", nullable=False)
    op.create_unique_constraint("notes_slug_key", "notes", ["slug"])


def downgrade() -> None:
    op.drop_column("notes", "slug")
