-- Messages, their bodies, what is noted of them, and what workers share.
--
-- The name "picoqmail." before each table is replaced by that of the schema in use. Times are Unix
-- seconds of this server, leases apart.

-- One row is one message. `sidecar` is the JSON text that the directory store keeps in ID.json, byte
-- for byte. `state` is new, cur or undelivered; tmp while it is being written: no message yet.
-- `due` repeats the next attempt, infinity while it is held. `entered` is when it came into its
-- state, `octets` the size of its body. `doubt`: its end of data went to a relay whose reply is not yet recorded. `in_hand`: a run
-- has it; if its lease has ended, that run died, and `suspect` takes its place. A claim changes the
-- columns from `doubt` on; none of them is in an index, so that a claim is a HOT update, which touches
-- no index and can be pruned without vacuum.
CREATE TABLE picoqmail.message (
    id text COLLATE "C" PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('tmp', 'new', 'cur', 'undelivered')),
    due double precision NOT NULL,
    sidecar bytea NOT NULL,
    entered double precision NOT NULL,
    octets bigint NOT NULL DEFAULT 0,
    doubt boolean NOT NULL DEFAULT false,
    in_hand boolean NOT NULL DEFAULT false,
    suspect boolean NOT NULL DEFAULT false,
    fence bigint NOT NULL DEFAULT 0,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    holder text NOT NULL DEFAULT ''
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05
);

CREATE INDEX message_due ON picoqmail.message (due, id) WHERE state IN ('new', 'cur');
CREATE INDEX message_aside ON picoqmail.message (state, id) WHERE state IN ('tmp', 'undelivered');

-- The body, in chunks of 256 KiB. They are written once and never updated. EXTERNAL: not compressed,
-- for mail is mostly base64, and an octet of it is read once.
CREATE TABLE picoqmail.chunk (
    message text COLLATE "C" NOT NULL REFERENCES picoqmail.message ON DELETE CASCADE,
    number integer NOT NULL,
    octets bytea NOT NULL,
    PRIMARY KEY (message, number)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

ALTER TABLE picoqmail.chunk ALTER COLUMN octets SET STORAGE EXTERNAL;

-- What relays said of a message, at most 64 KiB.
CREATE TABLE picoqmail.result (
    message text COLLATE "C" PRIMARY KEY REFERENCES picoqmail.message ON DELETE CASCADE,
    octets bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- Outcomes of some recipients of a message that takes several transactions. They count for the
-- revision of the sidecar that they name.
CREATE TABLE picoqmail.progress (
    message text COLLATE "C" NOT NULL REFERENCES picoqmail.message ON DELETE CASCADE,
    number bigint GENERATED ALWAYS AS IDENTITY,
    revision bigint NOT NULL,
    outcomes text NOT NULL,
    PRIMARY KEY (message, number)
);

-- Idempotency keys: which message a key stands for. `name` is the SHA-256 of the key.
CREATE TABLE picoqmail.key (
    name text COLLATE "C" PRIMARY KEY,
    id text NOT NULL,
    fingerprint text NOT NULL,
    size bigint NOT NULL DEFAULT 0,
    created double precision NOT NULL DEFAULT 0,
    next_attempt double precision NOT NULL DEFAULT 0,
    expires double precision NOT NULL
);

CREATE INDEX key_expires ON picoqmail.key (expires);

-- The ledger of IDs that must not come in again: of messages that were brought here from another
-- store, and of those that have left. It outlives the messages. So nothing that was delivered
-- meanwhile comes a second time, from a caller whose answer was lost, or from a host that died before
-- it removed its own copy.
CREATE TABLE picoqmail.ledger (
    id text COLLATE "C" PRIMARY KEY,
    forgotten_at double precision NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX ledger_forgotten_at ON picoqmail.ledger (forgotten_at);

-- Routes that are down: the breaker of all workers.
CREATE TABLE picoqmail.route (
    name text COLLATE "C" PRIMARY KEY,
    since bigint NOT NULL,
    until bigint NOT NULL,
    failures bigint NOT NULL,
    stage text NOT NULL,
    reason text NOT NULL
);

-- The setting ratelimit: messages begun in each sixtieth of its period.
CREATE TABLE picoqmail.pace (
    seconds bigint NOT NULL,
    slice bigint NOT NULL,
    messages bigint NOT NULL,
    PRIMARY KEY (seconds, slice)
) WITH (fillfactor = 50);

-- What was learnt of relays.
CREATE TABLE picoqmail.lesson (
    relay text COLLATE "C" NOT NULL,
    fact text COLLATE "C" NOT NULL,
    value text NOT NULL,
    learnt bigint NOT NULL,
    PRIMARY KEY (relay, fact)
);

-- Against storms of reports: the reports of one hour for one address, and the failures that wait
-- for its digest. `digest` is the ID of the digest that is being made, as a rule '', and `taken` when that
-- began.
CREATE TABLE picoqmail.report_hour (
    name text COLLATE "C" PRIMARY KEY,
    address text NOT NULL,
    begin double precision NOT NULL,
    sent bigint NOT NULL DEFAULT 0,
    digest text NOT NULL DEFAULT '',
    taken double precision NOT NULL DEFAULT 0
);

CREATE TABLE picoqmail.report_failure (
    hour text COLLATE "C" NOT NULL REFERENCES picoqmail.report_hour ON DELETE CASCADE,
    number bigint GENERATED ALWAYS AS IDENTITY,
    failure text NOT NULL,
    PRIMARY KEY (hour, number)
);

-- Totals for people and graphs, and the times at which something was last done.
CREATE TABLE picoqmail.total (
    name text COLLATE "C" PRIMARY KEY,
    value double precision NOT NULL
) WITH (fillfactor = 50);
