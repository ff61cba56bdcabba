-- Fencing tokens: never repeated, not even for a session that is deleted and created again.
CREATE SEQUENCE skald_session_version;

CREATE TABLE skald_sessions (
    -- BLAKE3 of the tokenizer that defines the meaning of the tokens.
    tokenizer bytea NOT NULL,
    -- "anonymous", or a hash of the API key.
    tenant text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    -- The fencing token of the last turn that took the session.
    version bigint NOT NULL,
    -- 4 bytes per token, little endian. NULL while the first turn is running.
    tokens bytea,
    -- End of the first and of the last turn.
    created timestamptz,
    last_used timestamptz,
    -- The fencing tokens of the turns committed last, the latest at the end.
    turns bigint[] NOT NULL DEFAULT '{}',
    -- The server whose turn is running, and the expiry of its lease unless it is renewed.
    holder text,
    held_until timestamptz,
    PRIMARY KEY (tokenizer, tenant, id),
    CHECK ((tokens IS NULL) = (created IS NULL)),
    CHECK ((tokens IS NULL) = (last_used IS NULL)),
    CHECK ((holder IS NULL) = (held_until IS NULL))
);

-- For the sweep of expired sessions.
CREATE INDEX skald_sessions_last_used ON skald_sessions (tokenizer, last_used);
