"""On Postgres, triggers and programs in other languages enqueue with a function: `outbox_enqueue`."""

from collections.abc import Sequence

from alembic import op

revision: str = "outbox_0005"
down_revision: str | None = "outbox_0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

# No per cent sign and no colon before a letter: those are somebody's parameters.

#: Made where our tables are, and looks for them nowhere else, whatever the search path of who calls it.
_MAKE = r"""
DO $make$
DECLARE
    place text := (SELECT quote_ident(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE c.oid = 'outbox_message'::regclass);
BEGIN
    EXECUTE 'CREATE FUNCTION ' || place || $head$.outbox_enqueue(
        destination text,
        payload <KIND>,
        key text DEFAULT NULL,
        ordering_key text DEFAULT NULL,
        ordered boolean DEFAULT true,
        due_at timestamptz DEFAULT NULL,
        expires_at timestamptz DEFAULT NULL,
        lane text DEFAULT 'normal',
        traceparent text DEFAULT NULL,
        nudge boolean DEFAULT true,
        OUT id bigint,
        OUT is_new boolean
    )$head$ || ' SET search_path = ' || place || ', pg_temp LANGUAGE plpgsql AS ' || quote_literal($body$<BODY>$body$);
END $make$
"""

#: What it does is what `Outbox.enqueue` does: the same refusals, the same rows, locked in the same order.
_ENQUEUE = r"""
#variable_conflict use_column
DECLARE
    -- Whoever calls may give columns with collations of their own: the indexes have the default one.
    the_destination text COLLATE "default" := outbox_enqueue.destination;
    the_key text COLLATE "default" := outbox_enqueue.key;
    the_ordering_key text COLLATE "default" := outbox_enqueue.ordering_key;
    the_lane text COLLATE "default" := coalesce(outbox_enqueue.lane, 'normal');
    the_due_at timestamptz := outbox_enqueue.due_at;
    the_expires_at timestamptz := outbox_enqueue.expires_at;
    is_scheduled boolean := outbox_enqueue.due_at IS NOT NULL;
    is_ordered boolean := coalesce(outbox_enqueue.ordered, true);
    the_context text COLLATE "default";
    the_text bytea := convert_to(outbox_enqueue.payload, 'UTF8');
    the_digest text;
    the_id bigint;
    the_stream bigint;
    the_number bigint;
    the_share bigint;
    known_digest text;
    this_moment timestamptz := clock_timestamp();
    clock_floor CONSTANT timestamptz := '2024-01-01 00:00:00+00';
    first_instant CONSTANT timestamptz := '0001-01-02 00:00:00+00';
    last_instant CONSTANT timestamptz := '9999-12-30 00:00:00+00';
    faults text[] := '{}';
    each_name text;
    each_key text COLLATE "default";
    each_instant timestamptz;
BEGIN
    IF the_destination IS NULL OR the_destination COLLATE "C" !~ '^[a-z0-9][a-z0-9_.-]{0,99}$' THEN
        faults := faults || ('destination: expected the name of a destination, 1 to 100 of a-z 0-9 _ . -, got '
                             || coalesce(quote_literal(left(the_destination, 100)), 'null'));
    END IF;
    IF the_text IS NULL THEN
        faults := faults || 'payload: expected JSON, got null; whatever is joined to a null becomes null'::text;
    ELSE
        BEGIN
            PERFORM outbox_enqueue.payload::json;
        EXCEPTION WHEN data_exception OR statement_too_complex THEN
            faults := faults || ('payload: is no JSON (' || SQLERRM || ')');
        END;
    END IF;
    FOR each_name, each_key IN VALUES ('key', the_key), ('ordering_key', the_ordering_key) LOOP
        CONTINUE WHEN each_key IS NULL;
        IF length(each_key) NOT BETWEEN 1 AND 255 THEN
            faults := faults || (each_name || ': expected 1 to 255 characters, got ' || length(each_key));
        END IF;
        IF each_key COLLATE "C" ~ '[\u0001-\u001f\u007f-\u009f]' THEN
            faults := faults || (each_name || ': holds control characters');
        END IF;
        IF each_key COLLATE "C" ~ '(^|[^A-Za-z0-9])None([^A-Za-z0-9]|$)' THEN
            faults := faults || (each_name || ': ' || quote_literal(left(each_key, 60)) || ' seems to be made from a None');
        END IF;
    END LOOP;
    FOR each_name, each_instant IN VALUES ('due_at', the_due_at), ('expires_at', the_expires_at) LOOP
        IF each_instant NOT BETWEEN first_instant AND last_instant THEN
            faults := faults || (each_name || ': expected an instant in the years 1 to 9999, got ' || each_instant);
        END IF;
    END LOOP;
    IF the_expires_at <= the_due_at THEN
        faults := faults || 'expires_at: is not after due_at, the message would expire before it is ever tried'::text;
    ELSIF the_expires_at <= this_moment AND this_moment >= clock_floor THEN
        faults := faults || ('expires_at: has passed, it is ' || date_trunc('second', this_moment AT TIME ZONE 'UTC')
                             || ' UTC here');
    END IF;
    IF the_lane NOT IN ('express', 'normal', 'bulk', 'large') THEN
        faults := faults || ('lane: no lane named ' || quote_literal(left(the_lane, 80))
                             || '; known are express, normal, bulk, large');
    END IF;
    IF outbox_enqueue.traceparent IS NOT NULL THEN
        -- Of a later version of the W3C's form, the part that will not change is kept.
        the_context := substring(
            outbox_enqueue.traceparent COLLATE "C"
            FROM '^(?:(?=00.{53}$)|(?!00|ff)(?=.{55}(-|$)))[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}'
        );
        IF the_context IS NULL THEN
            faults := faults || 'traceparent: expected the form of the W3C, 00-TRACE-SPAN-FLAGS'::text;
        END IF;
        the_context := '00' || substr(the_context, 3);
    END IF;
    IF cardinality(faults) > 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = array_to_string(faults, '; ');
    END IF;

    the_digest := encode(sha256(the_text || '\x00'::bytea || convert_to(coalesce(the_ordering_key, ''), 'UTF8')), 'hex');
    the_due_at := coalesce(the_due_at, this_moment);
    IF the_ordering_key IS NOT NULL AND is_ordered THEN
        -- The row stays locked until COMMIT, so numbers are given in commit order.
        INSERT INTO outbox_stream AS s (destination, ordering_key, last_number)
            VALUES (the_destination, the_ordering_key, 1)
            ON CONFLICT (destination, ordering_key) DO UPDATE SET last_number = s.last_number + 1
            RETURNING s.id, s.last_number INTO the_stream, the_number;
        IF the_number = 1 THEN
            INSERT INTO outbox_head (stream_id, destination, lane) VALUES (the_stream, the_destination, the_lane);
        END IF;
    ELSIF the_ordering_key IS NOT NULL THEN
        -- The share must not be put to rest before COMMIT. An INSERT would wait for whoever is waking one that is there.
        SELECT s.id INTO the_share FROM outbox_share s
            WHERE s.destination = the_destination AND s.ordering_key = the_ordering_key AND s.lane = the_lane FOR KEY SHARE;
        IF NOT FOUND THEN
            INSERT INTO outbox_share (destination, ordering_key, lane) VALUES (the_destination, the_ordering_key, the_lane)
                ON CONFLICT DO NOTHING;
            SELECT s.id INTO STRICT the_share FROM outbox_share s
                WHERE s.destination = the_destination AND s.ordering_key = the_ordering_key AND s.lane = the_lane FOR KEY SHARE;
        END IF;
    END IF;

    -- A name that nobody chose is a UUID of version 7, which comes after those before it.
    INSERT INTO outbox_message AS m (
        destination, lane, key, payload, digest, size, file_bytes, files, state, created_at, due_at, clock_plausible,
        scheduled, expires_at, traceparent, stream_id, stream_number, share_id
    ) VALUES (
        the_destination, the_lane,
        coalesce(the_key, lpad(to_hex((extract(epoch FROM this_moment) * 1000)::bigint), 12, '0') || '7'
                          || substr(replace(gen_random_uuid()::text, '-', ''), 14)),
        outbox_enqueue.payload, the_digest,
        octet_length(the_text) + 1, -- with the comma between two messages of a request
        0, 0, 'pending', this_moment, the_due_at, this_moment >= clock_floor,
        is_scheduled, the_expires_at, the_context, the_stream, the_number, the_share
    ) ON CONFLICT (destination, key) DO NOTHING RETURNING m.id INTO the_id;
    is_new := the_id IS NOT NULL;
    IF NOT is_new THEN
        SELECT m.id, m.digest INTO the_id, known_digest FROM outbox_message m
            WHERE m.destination = the_destination AND m.key = the_key;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'key ' || quote_literal(the_key)
                || ' was that of a message that has been purged just now; try again';
        ELSIF known_digest <> the_digest THEN
            RAISE EXCEPTION USING ERRCODE = 'unique_violation', TABLE = 'outbox_message',
                MESSAGE = 'key ' || quote_literal(the_key) || ' already names message ' || the_id || ' of destination '
                    || quote_literal(the_destination) || ' with other content',
                HINT = 'Use another key, or enqueue exactly the same payload with the same ordering key again.';
        END IF;
    END IF;
    id := the_id;
    IF NOT is_new THEN
        RETURN;
    END IF;

    -- A stream at rest becomes due with its new message; one that is under way finds it by itself.
    IF the_stream IS NOT NULL THEN
        UPDATE outbox_head SET due_at = the_due_at, scheduled = is_scheduled, lane = the_lane
            WHERE stream_id = the_stream AND due_at IS NULL;
    ELSIF the_share IS NOT NULL THEN
        -- One that somebody else is waking is passed over; should that one roll back, it is found as a stray.
        PERFORM 1 FROM outbox_share s WHERE s.id = the_share AND (s.due_at IS NULL OR s.due_at > the_due_at)
            FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE outbox_share SET due_at = the_due_at, scheduled = is_scheduled WHERE outbox_share.id = the_share;
        END IF;
    END IF;
    IF coalesce(outbox_enqueue.nudge, true) THEN
        PERFORM pg_notify('outbox', the_destination);
    END IF;
END
"""

#: The same for a payload that is JSON by its type: what `row_to_json` and `jsonb_build_object` make.
_HAND_OVER = r"""
BEGIN
    SELECT made.id, made.is_new INTO outbox_enqueue.id, outbox_enqueue.is_new FROM outbox_enqueue(
        outbox_enqueue.destination, outbox_enqueue.payload::text, outbox_enqueue.key, outbox_enqueue.ordering_key,
        outbox_enqueue.ordered, outbox_enqueue.due_at, outbox_enqueue.expires_at, outbox_enqueue.lane,
        outbox_enqueue.traceparent, outbox_enqueue.nudge
    ) AS made;
END
"""

_DROP = """
DO $drop$
DECLARE
    made regprocedure;
BEGIN
    FOR made IN SELECT p.oid FROM pg_proc p JOIN pg_class c ON c.relnamespace = p.pronamespace
                WHERE p.proname = 'outbox_enqueue' AND c.oid = 'outbox_message'::regclass LOOP
        EXECUTE 'DROP FUNCTION ' || made;
    END LOOP;
END $drop$
"""


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for kind, body in (("text", _ENQUEUE), ("json", _HAND_OVER), ("jsonb", _HAND_OVER)):
            op.execute(_MAKE.replace("<KIND>", kind).replace("<BODY>", body))


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(_DROP)
