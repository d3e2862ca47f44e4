//! The statements of a batch, each of whole columns of values, prepared once for a connection.

use tokio_postgres::{Client, Error, Statement};

use super::super::claim::IN_FORCE;

/// Lists statements, prepared together in one round trip.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $text:expr;)*) => {
        /// Every statement of a batch.
        pub(in super::super) struct Statements {
            $($(#[$doc])* pub(super) $name: Statement),*
        }

        impl Statements {
            /// Has the server read them all.
            pub(in super::super) async fn prepare(client: &Client) -> Result<Self, Error> {
                $(let $name: String = $text.into();)*
                let ($($name),*) = futures::join!($(client.prepare(&$name)),*);
                Ok(Self { $($name: $name?),* })
            }
        }
    };
}

statements! {
    // What conditions are judged by.

    lock_requests = "SELECT number FROM inbox WHERE number = ANY ($1) ORDER BY number FOR UPDATE";
    lock_instances = "SELECT id, version, claimed_by, taken_over FROM instances
        WHERE id = ANY ($1) ORDER BY id FOR UPDATE";
    lock_usage = "SELECT cell, instances, cpu_millis, memory_mib, data_mib FROM usage
        WHERE cell = ANY ($1) OR cell IN (SELECT r.cell FROM reservations r WHERE r.instance = ANY ($2))
        ORDER BY cell FOR UPDATE OF usage";
    share_version = "SELECT used FROM versions FOR SHARE";
    lock_version = "SELECT used FROM versions FOR UPDATE";
    lock_data = "SELECT id, tenant, instance, cell, state, since FROM data WHERE id = ANY ($1) ORDER BY id FOR UPDATE";
    reservations = "SELECT instance, cell, cpu_millis, memory_mib, data_mib FROM reservations WHERE instance = ANY ($1)";
    host_names = "SELECT name, instance FROM host_names WHERE name = ANY ($1) OR instance = ANY ($2)";
    operations = "SELECT key, state, ended_at, failure, body, accepted_at FROM operations
        WHERE key = ANY ($1) OR id = ANY ($2)";
    sessions = format!("SELECT epoch FROM sessions WHERE {IN_FORCE}");
    /// The transaction's number, by which it can be asked about when its answer is lost.
    begun = "SELECT pg_current_xact_id()::text";

    // What is written.

    delete_requests = "DELETE FROM inbox WHERE number = ANY ($1)";
    insert_instances = "INSERT INTO instances
            (id, version, tenant, cell, lane, due_at, phase, parked, claimed_by, taken_over, body)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::text[],
            $8::boolean[], $9::bigint[], $10::boolean[], $11::text[])";
    /// Indexed columns that do not change in value cost nothing.
    /// <https://www.postgresql.org/docs/current/storage-hot.html>
    update_instances = "UPDATE instances SET version = n.version, tenant = n.tenant, cell = n.cell, lane = n.lane,
            due_at = n.due_at, phase = n.phase, parked = n.parked, claimed_by = n.claimed_by, taken_over = n.taken_over,
            body = n.body
        FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::text[],
            $8::boolean[], $9::bigint[], $10::boolean[], $11::text[])
            AS n (id, version, tenant, cell, lane, due_at, phase, parked, claimed_by, taken_over, body)
        WHERE instances.id = n.id";
    delete_instances = "DELETE FROM instances WHERE id = ANY ($1)";
    delete_specs = "DELETE FROM specs WHERE instance = ANY ($1) AND NOT EXISTS (
            SELECT FROM unnest($2::text[], $3::bigint[]) AS kept (instance, generation)
            WHERE kept.instance = specs.instance AND kept.generation = specs.generation)";
    write_specs = "INSERT INTO specs (instance, generation, body)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
        ON CONFLICT (instance, generation) DO UPDATE SET body = excluded.body";
    delete_reservations = "DELETE FROM reservations WHERE instance = ANY ($1)";
    write_reservations = "INSERT INTO reservations (instance, cell, cpu_millis, memory_mib, data_mib)
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
        ON CONFLICT (instance) DO UPDATE SET cell = excluded.cell, cpu_millis = excluded.cpu_millis,
            memory_mib = excluded.memory_mib, data_mib = excluded.data_mib";
    /// Not one that is there: its sums would be lost.
    insert_usage = "INSERT INTO usage (cell, instances, cpu_millis, memory_mib, data_mib)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])";
    update_usage = "UPDATE usage SET instances = n.instances, cpu_millis = n.cpu_millis, memory_mib = n.memory_mib,
            data_mib = n.data_mib
        FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
            AS n (cell, instances, cpu_millis, memory_mib, data_mib)
        WHERE usage.cell = n.cell";
    delete_host_names = "DELETE FROM host_names WHERE name = ANY ($1)";
    insert_host_names = "INSERT INTO host_names (name, instance) SELECT * FROM unnest($1::text[], $2::text[])";
    /// One without a new body only lost its key, or ended: then it stays as another process may have ended it meanwhile.
    update_operations = "UPDATE operations SET key = n.key, body = coalesce(n.body, operations.body),
            state = CASE WHEN n.body IS NULL AND operations.ended_at IS NOT NULL THEN operations.state ELSE n.state END,
            ended_at = CASE WHEN n.body IS NULL THEN coalesce(operations.ended_at, n.ended_at) ELSE n.ended_at END,
            failure = CASE WHEN n.body IS NULL AND operations.ended_at IS NOT NULL THEN operations.failure ELSE n.failure END
        FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[])
            AS n (id, key, state, ended_at, failure, body)
        WHERE operations.id = n.id";
    insert_operations = "INSERT INTO operations (id, instance, key, verb, state, accepted_at, ended_at, failure, body)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
            $8::text[], $9::text[])";
    end_operations = "UPDATE operations SET state = n.state, ended_at = n.ended_at, failure = n.failure
        FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS n (id, state, ended_at, failure)
        WHERE operations.id = n.id AND operations.ended_at IS NULL";
    write_incarnations = "INSERT INTO incarnations (incarnation, instance, tenant, cell, data, state, ended_at, due_at)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
            $8::bigint[])
        ON CONFLICT (incarnation) DO UPDATE SET instance = excluded.instance, tenant = excluded.tenant,
            cell = excluded.cell, data = excluded.data, state = excluded.state, ended_at = excluded.ended_at,
            due_at = excluded.due_at, claimed_by = NULL";
    write_data = "INSERT INTO data (id, tenant, instance, cell, state, since)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
        ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, instance = excluded.instance, cell = excluded.cell,
            state = excluded.state, since = excluded.since";
    delete_data = "DELETE FROM data WHERE id = ANY ($1)";
    write_strangers = "INSERT INTO strangers (incarnation, instance, cell, data, generation, found_at)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
        ON CONFLICT (incarnation) DO UPDATE SET instance = excluded.instance, cell = excluded.cell,
            data = excluded.data, generation = excluded.generation, found_at = excluded.found_at";
    delete_strangers = "DELETE FROM strangers WHERE incarnation = ANY ($1)";
    write_cells = "INSERT INTO cells (name, identity, drift_frozen)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
        ON CONFLICT (name) DO UPDATE SET identity = excluded.identity, drift_frozen = excluded.drift_frozen";
    freeze = "INSERT INTO meta (key, value) VALUES ('frozen', $1::boolean::text)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    use_version = "UPDATE versions SET used = greatest(used, $1)";
    /// What is taken from a session that lapsed is not its own again, whatever the clock shows later. One that was renewed meanwhile, or
    /// is being renewed, goes on without it.
    end_sessions = "UPDATE sessions SET closed = true WHERE epoch = ANY (ARRAY(
        SELECT epoch FROM sessions WHERE epoch = ANY ($1) AND NOT closed AND expires_at <= clock_timestamp()
            FOR UPDATE SKIP LOCKED))";
    tell = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload";
    /// Last: whoever writes events waits here for whoever wrote some and is not done.
    write_events = "WITH counter AS (UPDATE counters SET position = position + $3 RETURNING position - $3 AS before),
        mark AS (INSERT INTO writers (writer, batch, position) SELECT $1, $2, before + $3 FROM counter
            ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, position = excluded.position,
                written_at = excluded.written_at),
        new AS (SELECT before + number AS position, instance, at, last, body
            FROM counter, unnest($4::text[], $5::bigint[], $6::boolean[], $7::text[])
                WITH ORDINALITY AS n (instance, at, last, body, number)),
        written AS (INSERT INTO events (position, instance, at, last, body) SELECT * FROM new),
        gone AS (INSERT INTO forgotten (position, instance) SELECT position, instance FROM new
            WHERE last AND instance IS NOT NULL)
        SELECT before, pg_notify($8, 'position ' || (before + $3)) FROM counter";
    /// Instead, where there are none.
    mark = "INSERT INTO writers (writer, batch, position) SELECT $1, $2, position FROM counters
        ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, position = excluded.position,
            written_at = excluded.written_at
        RETURNING position";
}
