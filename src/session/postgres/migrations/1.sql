-- Fencing tokens: never the same twice, not even for a session that is deleted and made anew.
CREATE SEQUENCE skald_session_version;

CREATE TABLE skald_sessions (
    -- BLAKE3 of the tokenizer that gives the tokens their meaning.
    tokenizer bytea NOT NULL,
    -- "anonymous", or a hash of the API key.
    tenant text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    -- The fencing token of the turn that took the session last.
    version bigint NOT NULL,
    -- 4 bytes a token, little endian. NULL while the first turn runs.
    tokens bytea,
    -- When the first turn ended, and the last.
    created timestamptz,
    last_used timestamptz,
    -- The fencing tokens of the last turns that were kept, the latest at the end.
    turns bigint[] NOT NULL DEFAULT '{}',
    -- The server whose turn it is, and how long it is without a word from that server.
    holder text,
    held_until timestamptz,
    PRIMARY KEY (tokenizer, tenant, id),
    CHECK ((tokens IS NULL) = (created IS NULL)),
    CHECK ((tokens IS NULL) = (last_used IS NULL)),
    CHECK ((holder IS NULL) = (held_until IS NULL))
);

-- Finds what has expired.
CREATE INDEX skald_sessions_last_used ON skald_sessions (tokenizer, last_used);
