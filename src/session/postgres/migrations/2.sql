-- Where a session was forked: the other session's name, and the number of tokens it began with. Without
-- defaults, so no row is rewritten, and statements of servers of version 1 keep working.
ALTER TABLE skald_sessions ADD COLUMN forked_from text COLLATE "C", ADD COLUMN forked_at bigint;
