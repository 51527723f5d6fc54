"""The tables. Times are seconds since 1970 in UTC, which both databases keep exactly."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: API keys. Only a hash of the secret is kept; the limits are per key, null for none.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("rate_per_minute", Integer),
    Column("daily_quota", Integer),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

#: `owner` is a key's id, or "" where the service is open. An expired set loses its examples and
#: stays as a row for a while, so that its address can still say what became of it.
support_sets = Table(
    "support_sets",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("owner", String(40), nullable=False),
    Column("name", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("ttl", BigInteger),
    Column("revision", BigInteger, nullable=False),
    Column("next_position", BigInteger, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("expires_at", Double),
    Index(None, "owner", "created_at", "id"),
    Index(None, "expires_at"),
)

#: `position` orders a set's examples; it only grows, so deleting leaves the others in place.
examples = Table(
    "examples",
    metadata,
    Column("id", String(40), primary_key=True),
    Column(
        "set_id",
        String(40),
        ForeignKey("support_sets.id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("position", BigInteger, nullable=False),
    Column("label", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("media_type", String(40), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    # Last, so that a row can be read without its bytes.
    Column("data", LargeBinary, nullable=False),
    UniqueConstraint("set_id", "position"),
    UniqueConstraint("set_id", "sha256"),
)

#: Answers to requests with an Idempotency-Key, written in the transaction of what they tell.
replays = Table(
    "replays",
    metadata,
    Column("owner", String(40), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("bytes", Integer, nullable=False, server_default=text("0")),
    Index(None, "created_at"),
    # An owner's bytes are summed from this index alone.
    Index(None, "owner", "created_at", "bytes"),
)

#: Requests of keys that have a daily quota; `day` counts from 1970, in UTC.
key_usage = Table(
    "key_usage",
    metadata,
    Column("key_id", String(40), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("used", BigInteger, nullable=False),
)

#: Written to find out whether writing works again after it has failed; empty otherwise.
probes = Table(
    "probes",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
