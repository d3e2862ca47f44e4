-- Columns are what is looked for or counted; the rest of a row is its body, JSON as text with a schema version of its own: the
-- database never looks into it, and text is stored as it came. Names sort by their bytes, as in the other stores.
-- Times are milliseconds since the Unix epoch where a control plane tells them, and timestamptz where the database does.

CREATE TABLE meta (
    key text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- The position of the last event. Whoever writes events holds this row from then to the end of its transaction, so that
-- events become visible in their order, without gaps.
CREATE TABLE counters (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    position bigint NOT NULL DEFAULT 0
);
INSERT INTO counters DEFAULT VALUES;

-- The highest version of an instance that is gone. Whoever inserts shares this row, whoever deletes holds it.
CREATE TABLE versions (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    used bigint NOT NULL DEFAULT 0
);
INSERT INTO versions DEFAULT VALUES;

-- The last batch that each process committed: what a process asks for when it lost the answer.
CREATE TABLE writers (
    writer text COLLATE "C" PRIMARY KEY,
    batch bigint NOT NULL,
    position bigint NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE sessions (
    epoch bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    holder text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    closed boolean NOT NULL DEFAULT false
);

-- Room is left in each page: an update that changes no indexed column then stays in its page and writes no index.
CREATE TABLE instances (
    id text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    cell text COLLATE "C" NOT NULL,
    lane smallint NOT NULL,
    due_at bigint,
    phase text COLLATE "C",
    parked boolean NOT NULL,
    claimed_by bigint,
    taken_over boolean NOT NULL DEFAULT false,
    body text NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX instances_due ON instances (cell, lane, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX instances_by_tenant ON instances (tenant, id);
CREATE INDEX instances_by_cell ON instances (cell, id) INCLUDE (phase);
CREATE INDEX instances_by_phase ON instances (phase, id);
CREATE INDEX instances_parked ON instances (id) WHERE parked;

CREATE TABLE specs (
    instance text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (instance, generation)
);

CREATE TABLE reservations (
    instance text COLLATE "C" PRIMARY KEY,
    cell text COLLATE "C" NOT NULL,
    cpu_millis bigint NOT NULL,
    memory_mib bigint NOT NULL,
    data_mib bigint NOT NULL
);

-- The sums of the reservations, kept in step with them.
CREATE TABLE usage (
    cell text COLLATE "C" PRIMARY KEY,
    instances bigint NOT NULL,
    cpu_millis bigint NOT NULL,
    memory_mib bigint NOT NULL,
    data_mib bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE host_names (
    name text COLLATE "C" PRIMARY KEY,
    instance text COLLATE "C" NOT NULL
);
CREATE INDEX host_names_by_instance ON host_names (instance);

CREATE TABLE incarnations (
    incarnation text COLLATE "C" PRIMARY KEY,
    instance text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    cell text COLLATE "C" NOT NULL,
    data text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    ended_at bigint,
    due_at bigint,
    claimed_by bigint
);
CREATE INDEX incarnations_due ON incarnations (cell, due_at, incarnation) WHERE due_at IS NOT NULL;
-- Apart from those that are due: a planner that saw the table empty would look for these among all that are alive.
CREATE INDEX incarnations_open ON incarnations (cell) WHERE state <> 'ended';
CREATE INDEX incarnations_ended ON incarnations (ended_at) WHERE state = 'ended' AND due_at IS NULL;

CREATE TABLE data (
    id text COLLATE "C" PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    instance text COLLATE "C" NOT NULL,
    cell text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    since bigint NOT NULL
);
CREATE INDEX data_by_tenant ON data (tenant, id);
CREATE INDEX data_by_cell ON data (cell);

-- What changes is not in the body: the key is taken off once its time is over, and an end is written without the rest.
CREATE TABLE operations (
    id text COLLATE "C" PRIMARY KEY,
    instance text COLLATE "C" NOT NULL,
    key text COLLATE "C",
    verb text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    accepted_at bigint NOT NULL,
    ended_at bigint,
    failure text,
    body text NOT NULL
);
CREATE UNIQUE INDEX operations_by_key ON operations (key) WHERE key IS NOT NULL;
CREATE INDEX operations_ended ON operations (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX operations_creations ON operations (ended_at, id)
    WHERE verb = 'create' AND state IN ('done', 'failed');

CREATE TABLE events (
    position bigint PRIMARY KEY,
    instance text COLLATE "C",
    at bigint NOT NULL,
    last boolean NOT NULL,
    body text NOT NULL
);
CREATE INDEX events_by_instance ON events (instance, position) WHERE instance IS NOT NULL;
CREATE INDEX events_by_age ON events (at, position);

-- Instances that are gone and whose events up to this one are not removed yet.
CREATE TABLE forgotten (
    position bigint PRIMARY KEY,
    instance text COLLATE "C" NOT NULL
);

CREATE TABLE strangers (
    incarnation text COLLATE "C" PRIMARY KEY,
    instance text COLLATE "C" NOT NULL,
    cell text COLLATE "C" NOT NULL,
    data text COLLATE "C",
    generation bigint NOT NULL,
    found_at bigint NOT NULL
);
CREATE INDEX strangers_by_cell ON strangers (cell);

CREATE TABLE cells (
    name text COLLATE "C" PRIMARY KEY,
    identity text,
    drift_frozen text
);

-- Requests that callers put here inside their own transactions, until the control plane takes them in.
CREATE TABLE inbox (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    operation text COLLATE "C" NOT NULL UNIQUE,
    instance text COLLATE "C" NOT NULL,
    verb text COLLATE "C" NOT NULL,
    parameters jsonb NOT NULL,
    actor text NOT NULL,
    reason text,
    key text COLLATE "C",
    expected bigint,
    at bigint NOT NULL,
    claimed_by bigint
);
CREATE INDEX inbox_by_instance ON inbox (instance, number);
CREATE UNIQUE INDEX inbox_by_key ON inbox (key) WHERE key IS NOT NULL;
