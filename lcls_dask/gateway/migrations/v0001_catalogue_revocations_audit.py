"""The first tables: catalogue, revocations, and the index of the audit."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "catalogue",
        sa.Column("experiment", sa.String(64), primary_key=True),
        sa.Column("run", sa.Integer, primary_key=True),
        sa.Column("stamp", sa.String(64), nullable=False),
        sa.Column("row", sa.JSON, nullable=False),
    )
    op.create_table(
        "revocations",
        sa.Column("identifier", sa.String(256), primary_key=True),
        sa.Column("since", sa.String(40), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "audit_files",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("offset", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("time", sa.Float, nullable=False, index=True),
        sa.Column("user", sa.String(200), nullable=False, index=True),
        sa.Column("role", sa.String(200), nullable=False),
        sa.Column("experiment", sa.String(200), nullable=False, index=True),
        sa.Column("run", sa.Integer),
        sa.Column("operation", sa.String(200), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("decision", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("certificate", sa.String(200), nullable=False),
        sa.Column("token", sa.String(200)),
        sa.Column("address", sa.String(200), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for name in ("audit", "audit_files", "revocations", "catalogue"):
        op.drop_table(name)
