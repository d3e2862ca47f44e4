-- Puts a request into the inbox, inside the caller's own transaction, and returns the id of the operation that it becomes.
-- It runs with the rights of its owner, so that a caller needs the right to execute it and no other.
CREATE FUNCTION submit(
    verb text,
    instance text,
    parameters jsonb,
    actor text,
    reason text DEFAULT NULL,
    key text DEFAULT NULL,
    expected bigint DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, {schema}, pg_temp
SET standard_conforming_strings = on
AS $function$
#variable_conflict use_column
DECLARE
    now_ms CONSTANT bigint := floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint;
    kept_ms CONSTANT bigint := 24 * 3600 * 1000;
    misleading CONSTANT text COLLATE "C" := '[\x01-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]';
    -- Anything but white space, of which Unicode has more than the server's classes know in every locale.
    visible CONSTANT text COLLATE "C" := '[^\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]';
    operation_id CONSTANT text := lpad(to_hex(now_ms), 12, '0')
        || right(replace(gen_random_uuid()::text, '-', ''), 12) || left(replace(gen_random_uuid()::text, '-', ''), 8);
    holder record;
    -- Not in the collation of what the caller passed: it may be one that columns are not compared in, or that has no patterns.
    asked_verb CONSTANT text COLLATE "C" := submit.verb;
    asked_instance CONSTANT text COLLATE "C" := submit.instance;
    asked_actor CONSTANT text COLLATE "C" := submit.actor;
    asked_key CONSTANT text COLLATE "C" := submit.key;
BEGIN
    IF asked_verb IS NULL OR asked_verb NOT IN
        ('create', 'update', 'restart', 'sleep', 'wake', 'suspend', 'lift', 'destroy', 'retry')
    THEN
        RAISE EXCEPTION 'verb %: expected create, update, restart, sleep, wake, suspend, lift, destroy or retry',
            coalesce(quote_literal(left(asked_verb, 60)), 'null') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF asked_instance IS NULL OR asked_instance !~ '^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$' THEN
        RAISE EXCEPTION 'instance %: expected a DNS label: 1 to 40 characters of a-z, 0-9 and -, starting with a letter and not ending with -',
            coalesce(quote_literal(left(asked_instance, 60)), 'null') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.parameters IS NULL OR jsonb_typeof(submit.parameters) <> 'object' THEN
        RAISE EXCEPTION 'parameters: expected a JSON object, found %',
            coalesce(jsonb_typeof(submit.parameters), 'null') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(submit.parameters::text) > 262144 THEN
        RAISE EXCEPTION 'parameters: expected 256 KiB at most, found % bytes', octet_length(submit.parameters::text)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF length(submit.reason) > 1000 THEN
        RAISE EXCEPTION 'reason: expected 1000 characters at most' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF asked_actor IS NULL OR asked_actor !~ visible OR length(asked_actor) > 128
        OR asked_actor ~ misleading
    THEN
        RAISE EXCEPTION 'actor: expected 1 to 128 characters without control characters'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF asked_key IS NOT NULL AND asked_key !~ '^[ -~]{1,255}$' THEN
        RAISE EXCEPTION 'key: expected 1 to 255 visible ASCII characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.expected < 1 THEN
        RAISE EXCEPTION 'expected %: expected a revision, 1 or more', submit.expected
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR attempt IN 1..3 LOOP
        IF asked_key IS NOT NULL THEN
            -- In one statement: a request that is taken in meanwhile is seen at one place or the other.
            SELECT o.id, o.verb, o.instance INTO holder FROM (
                SELECT id, verb, instance, accepted_at FROM operations WHERE operations.key = asked_key
                UNION ALL SELECT operation, verb, instance, at FROM inbox WHERE inbox.key = asked_key
            ) AS o WHERE now_ms < o.accepted_at + kept_ms ORDER BY o.accepted_at DESC LIMIT 1;
            IF FOUND THEN
                IF holder.verb <> asked_verb OR holder.instance <> asked_instance THEN
                    RAISE EXCEPTION 'key: it belongs to operation %, which is to % %', holder.id, holder.verb, holder.instance
                        USING ERRCODE = 'unique_violation';
                END IF;
                RETURN holder.id;
            END IF;
            UPDATE inbox SET key = NULL WHERE inbox.key = asked_key AND inbox.at + kept_ms <= now_ms;
        END IF;
        INSERT INTO inbox (operation, instance, verb, parameters, actor, reason, key, expected, at)
            VALUES (operation_id, asked_instance, asked_verb, submit.parameters, asked_actor, submit.reason, asked_key,
                submit.expected, now_ms)
            ON CONFLICT (key) WHERE key IS NOT NULL DO NOTHING;
        IF FOUND THEN
            PERFORM pg_notify('{channel}', 'submitted');
            RETURN operation_id;
        END IF;
        -- Somebody else put a request of this key there this moment: look again.
    END LOOP;
    RAISE EXCEPTION 'key: it is being used by others; try again' USING ERRCODE = 'serialization_failure';
END
$function$;
REVOKE ALL ON FUNCTION submit FROM PUBLIC;
COMMENT ON FUNCTION submit IS
    'Puts a request to the control plane into its inbox. It is taken in when the transaction is committed.';
