"""Every maximum of imlmesh, each with its reason.

The one rule: no other file states a limit of its own. Sizes are bytes, times milliseconds,
unless the name says otherwise.
"""

from dataclasses import dataclass

# wire
MESSAGE_BYTES = 256 * 1024  # brokers of the field default near it; a Pi decodes it in ~5 ms
MESSAGE_DEPTH = 16  # plans nest 4 to 6; C stacks of decoders are safe far beyond
MESSAGE_VALUES = 20_000  # bounds the decode time of a 256 KiB message full of tiny values
COUNT_MAX = (1 << 63) - 1  # of a number in a message: what a column of the stores holds
DISPATCH_ID_CHARS = 192  # run, action (64), node (63) and attempt need at most 161
PARAMS_BYTES = 192 * 1024  # leaves room for envelope and neighbours within one message
RESULT_BYTES = 4 * 1024 * 1024  # packed; more belongs into a file
RESULT_CHUNK_BYTES = 192 * 1024  # of a larger result in one message, as long as params may be
RESULT_CHUNKS = -(-RESULT_BYTES // RESULT_CHUNK_BYTES)  # of one result
MESSAGE_EXPIRY_MS = 60_000  # whatever matters is sent again sooner, so older is only a replay
CLOCK_TOLERANCE_MS = 5_000  # two synced clocks differ by the half of a slow round trip
BATCH_DISPATCHES = 128  # dispatches a delegate: one signature for many, still well below 256 KiB
BATCH_BYTES = 160 * 1024  # a delegate or complete is closed when its parts reach this
WINDOW_UNACKED = 64  # PUBLISH packets without PUBACK before the link waits
KEEPALIVE_S = 20  # a half-open TCP connection is noticed within 1.5 of it
LINK_PACKET_BYTES = (
    MESSAGE_BYTES + 16 * 1024
)  # a message with topic and headers; more closes the connection
LINK_WAITING_MESSAGES = 10_000  # held while the window is full: a burst to a whole fleet fits
LINK_WAITING_BYTES = 64 * 1024 * 1024  # of them; a Pi keeps room for the rest
LINK_CONNECT_MS = 10_000  # until a machine answers at all
LINK_ENTER_MS = (
    30_000  # TLS, CONNACK and SUBACK of each of 1,000 nodes that come back at once, on a Pi
)
LINK_RETRY_MS = 250  # first pause before a new attempt; doubles, drawn with full jitter
LINK_LASTED_MS = 2_000  # a session that worked for so long and breaks is no failed attempt
LINK_RETRY_MAX_MS = 10_000  # 10,000 nodes come back at 1,000 handshakes a second
CONTROL_RETRY_MAX_MS = 2_000  # of the orchestrator: one client, and all wait for it
RETURN_MS = LINK_RETRY_MAX_MS  # a node may be silent so much longer after the broker was away
LINK_CLOSE_MS = 2_000  # a goodbye waits this long for acknowledgements
BROKER_PACKET_BYTES = 272 * 1024  # what the broker takes from a client: a message with its headers
BROKER_QUEUED_MESSAGES = 5_000  # of one client that reads slowly; beyond it the broker drops
BROKER_READ_BYTES = 64 * 1024  # of a connection at once, kept for it from its first byte on
BROKER_INFLIGHT_MESSAGES = 100  # sent to one client without PUBACK: more than WINDOW_UNACKED
BROKER_BACKLOG = 1_024  # connections not yet taken: a whole site may come back at once
BROKER_WAITING = 512  # connections of a port that have not said who they are, ~0.1 MB each
BROKER_WAITING_OF_ADDRESS = 256  # of them from one address: a site behind one router comes back
BROKER_WAITING_MS = 3_000  # after that one makes room for who comes: a Pi shakes 512 hands by then
BROKER_TOPIC_BYTES = 512  # of a topic or filter; with three ids of 63 ours stay below 260
BROKER_WILL_BYTES = (
    1_024  # a signed "gone": 466 with three ids of 63; each connection may leave one
)
BROKER_SUBSCRIPTIONS = 64  # of one client; ours need three
BROKER_FILTERS = 1_024  # in one packet; each is looked at, and ours hold three
BROKER_TURN_PACKETS = 128  # of one client, then the others have their turn: twice WINDOW_UNACKED
BROKER_QUEUED_BYTES = (
    16 * 1024 * 1024
)  # of one client that reads slowly: a fleet's beats four times
BROKER_QUEUED_QOS0_BYTES = 4 * 1024 * 1024  # of them; then QoS 0 is dropped, QoS 1 still waits
BROKER_HELD_BYTES = 4 * 1024 * 1024  # waiting for control; then nodes are read no further
BROKER_RETAINED_BYTES = 64 * 1024 * 1024  # of status messages: 10,000 births of 6 KB
BROKER_ROUTES = 20_000  # topics whose receivers are remembered: two of each node
BROKER_KNOWN_TOPICS = 64  # of one client, remembered as allowed; ours write to ten
BROKER_REFUSALS_TOLD = 20  # of one connection in the log; more is one fault told many times
PROBE_ANSWER_MS = 3_000  # a broker that lives answers a question within a second
BROKER_WATCH_MS = 50  # between two looks at what it may let in; revoking may take a second in all
BROKER_SAID_MS = 1_000  # between two looks at its log: a flood costs its watchers a line a second
BROKER_SAID_BYTES = 1024 * 1024  # of its log in one look; more is read in the next ones
BROKER_SAID_CLIENTS = 1_000  # counted by name; the rest of them together
ACCESS_BYTES = 2 * 1024 * 1024  # of access.json: 20,000 ids of 63 characters
PROBE_S = 600  # the certificates that a probe makes for itself: it takes seconds
PROBE_REVOKED_MS = 5_000  # until a revoked certificate must be refused: five times what we promise
BROKER_START_MS = 10_000  # a Pi's first start from a cold SD card takes 2 to 3 s
BROKER_RESTARTS = 5  # within BROKER_RESTART_WINDOW_MS; more will not help
BROKER_RESTART_WINDOW_MS = 60_000
CHILD_RESTARTS = 5  # of a process of `up`, within CHILD_RESTART_WINDOW_MS; more will not help
CHILD_RESTART_WINDOW_MS = 60_000
CHILD_RESTART_MS = 500  # first pause before a restart; doubles
CHILD_READY_MS = 30_000  # a Pi imports and opens its stores from a cold SD card in 5 to 10 s
STORES_READY_MS = (
    300_000  # an orchestrator reads all of its stores at a start: 20 MB a second on a card
)
STOP_MS = (
    10_000  # between SIGTERM and SIGKILL of a process that `up` started; twice SIGTERM by then
)
SHUTDOWN_MS = 60_000  # from SIGTERM to the end of a process of ours, whatever hangs
GOODBYE_MS = 5_000  # for drivers that are stopped to end, and the goodbye to leave
LOCAL_NODES = 20  # of a mesh inside one process, on one loop: a plan under test names a handful
PORTS_TRIED = 100  # from the usual one upwards, for a free one
DISCOVERY_ECHO_MS = 1_000  # a packet of our own comes back within a millisecond, or never
DISCOVERY_QUIET_MS = 5_000  # mDNS answers within a second; who hears nothing by then is told so
DISCOVERY_ANSWER_MS = 3_000  # of one service about itself: three questions
DISCOVERY_LISTEN_MS = 3_000  # `node discover` shows whom it heard by then
DISCOVERY_LOOK_MS = 2_000  # a laptop in another network is found there soon
DISCOVERY_AGAIN_MS = 60_000  # who hears nothing asks anew; the library would wait up to an hour
DISCOVERED = 256  # services kept; a network full of others' must not fill our memory
DISCOVERED_ADDRESSES = 8  # of one service: a computer with containers has five

# trust
ROSTER_GATHER_MS = 200  # who joins meanwhile is in the same roster; a removal does not wait for it
DOCUMENT_BYTES = 192 * 1024  # of trust or roster: they travel within a message; 10,000 short ids
TRUST_CERTIFICATES = 4  # of one role at once: two while one rolls over, and what an admin forgot
TRUST_KEYS = (
    8  # of one role at once: two while one rolls over; old ledger keys stay for their seals
)
ENROLLED_NODES = 10_000  # the largest fleet that is measured
JOIN_BYTES = 8 * 1024  # of a request to join: keys, names and a certificate request are below 2 KB
JOIN_ANSWER_BYTES = 256 * 1024  # to it: a certificate, and trust with DOCUMENT_BYTES
JOIN_HEAD_BYTES = 4 * 1024  # of what stands before its body; ours has 150
JOIN_CONNECTIONS = 256  # at once: a whole site that is imaged with one token, and room for others
JOIN_OF_ADDRESS = 128  # of them from one address, so that nobody holds the door shut alone
JOIN_CONNECTION_MS = 10_000  # TLS, request and answer together, on a busy Pi
JOIN_NONCE_MS = 60_000  # between a nonce and the request that uses it, by a person's slow network
JOIN_NONCES = 4_096  # given out and not used; then the oldest end
JOIN_POLL_MS = 2_000  # a node that waits asks so often what became of it
JOIN_WAITS_MS = 3_600_000  # a node that waits for a person and does not ask again is forgotten
JOIN_PROVEN_WAITS_MS = 7 * 86_400_000  # one that spent a use of a token: people have weekends
JOIN_WAITING = 64  # of them; a person looks through a list of that length
JOIN_WAITING_OF_ADDRESS = 8  # of them from one address, so that nobody fills the list alone
JOIN_IGNORED_MS = 86_400_000  # an ignored node may be seen again on the next day
JOIN_OPEN_MS = 15 * 60_000  # the longest that the door stands open without a person's look
JOIN_OPEN_NODES = 32  # let in by one opening of it; ids are for ever, and a person looks at more
JOIN_PACE_MS = 600_000  # within which one address or node may make us write JOIN_WRITES times
JOIN_WRITES = 30  # codes of one address, certificates of one node: what is written stays
JOIN_PACED = 4_096  # addresses and nodes whose pace is remembered; then the oldest is forgotten
TOKENS = 1_000  # kept at once, ended ones too
TOKEN_USES = 10_000  # as many as a mesh has nodes
TOKEN_MS = 3_600_000  # without --ttl: long enough to walk to the other machine
TOKEN_LONGEST_MS = 366 * 86_400_000  # an image that is flashed for a year
TOKEN_KEPT_MS = 7 * 86_400_000  # after its end, so that it is told why it does not work
TOKEN_WRONG_PROOFS = 5  # then it is burnt: nobody mistypes what is pasted
TOKEN_ENDPOINTS = 4  # in one token: a computer with two networks has two addresses
TOKEN_CHARS = 2_048  # of its text: ours have 250
KEY_FILE_BYTES = 16 * 1024  # a PEM file of ours is below 2 KB
CA_S = 730 * 86_400  # two years; rolled over with an overlap before its end
CERTIFICATE_S = 30 * 86_400  # of a node or control: renewed at two thirds of it while it runs
BROKER_FOLLOWS_S = 5.0  # a broker whose files are watched has read new ones by then
TRUST_AGAIN_MS = 15_000  # newer trust is told again to who did not say that it has it
CERTIFICATE_LEAST_S = 3  # of a node; shorter ones end before their renewal has begun
CERTIFICATE_MOST_S = 366 * 86_400  # who is revoked is refused by list until then
RENEWAL_SPREAD_MS = 10_000  # 10,000 nodes that a new CA makes renew: 1,000 a second
RENEWAL_RETRY_MS = 2_000  # pause after a renewal or a look for newer trust; doubles
RENEWAL_RETRY_MAX_MS = 600_000  # 1,400 tries in the last third of a certificate's life
RENEWAL_LOOK_MS = 3_600_000  # a sleeping machine finds out that late, at the latest, what is due
RENEWAL_S = 30.0  # of one renewal: a Pi imports for 3 s, then there are four round trips
SERVER_S = 825 * 86_400  # the longest that TLS clients of the field accept; made anew at a start
CRL_BYTES = 4 * 1024 * 1024  # of the lists of a role: 40 bytes for each removed certificate
CRL_S = 30 * 86_400  # past it every client is refused, so it is made anew each day
CERTIFICATE_BACKDATE_MS = 3_600_000  # clocks without a battery come up a little late
LOG_FILE_BYTES = 10 * 1024 * 1024  # of each of two log files of a process: an SD card has room

# admission
REASON_CHARS = 500  # why a person did it: a sentence or two, shown in one line of a table
ADMISSION_MS = 366 * 24 * 3_600_000  # longer than a year is for ever, and that needs no end
QUARANTINE_MS = 30 * 60_000  # by the mesh itself: long enough for a person to be told
QUARANTINE_LONGEST_MS = 24 * 3_600_000  # it doubles up to here; a node comes back within a day
QUARANTINE_FLEET_PERCENT = 20  # of the nodes, by the mesh itself: a bug of ours looks like them all
QUARANTINES = 5  # by the mesh itself within QUARANTINES_MS; more is no longer about single nodes
QUARANTINES_MS = 30 * 60_000
EVIDENCE_MS = 5 * 60_000  # what is older counts no more
EVIDENCE_KEPT = 20  # rows of one node within QUARANTINES_MS; all are counted
EVIDENCE_MALFORMED = 5  # messages that a node signed and no version of ours would send
EVIDENCE_AHEAD = 5  # messages that it dated later than now: it does not follow our clock
EVIDENCE_TAKEOVERS = 3  # sessions of another machine with its keys
EVIDENCE_CRASHES = 5  # different plans whose driver crashed, with nothing completed between
EVIDENCE_FLAPS = 6  # returns that held it down: up for 5 s and down for 5 s it takes 80 s
POISON_NODES = (
    3  # distinct ones on which an action's driver crashed: it is not about nodes any more
)
PROBES = 3  # answered on probation, and it is released
PROBE_EVERY_MS = 10_000  # three rounds in half a minute; each is one question and one answer
TIME_LATE_PER_S = 0.5  # answers to one node's questions out of order: it repeats one every 2 s
TIME_LATE_AT_ONCE = 5  # a node that forgot its boots needs one
TIME_KNOWN_MS = 5_000  # after the answer: what a node wrote before it has come, or is lost
TWO_SENDERS_MS = 3_000  # of one session's clock: two syncs, each wrong by half a round trip of 2 s
ACCESS_APPLIED_MS = 1_000  # who runs the broker reloads it within 0.1 s
ACCESS_ANSWER_MS = 3_000  # a person who removes a node is told by then whether it holds
ACCESS_AGAIN_MS = 2_000  # what is not applied is told again, until it is
CRL_AGAIN_S = 86_400  # the revocation list is made anew each day; it runs out after CRL_S
ACCESS_KICKS_MS = (0, 100, 400, 1_000)  # Mosquitto reloads some time after its signal
EXPIRED_LOOK_S = 60  # a certificate of 30 days may count a minute longer
ACCESS_HELD_MS = 150  # undisturbed for so long: nobody took the session back

# silence
JITTER_USUAL = 4  # a beat that comes a quarter of its interval late is nothing to notice
JITTER_FACTOR = 2  # the window grows by twice what beats came late, to double its length at most
JITTER_BEATS = 8  # of those in time: each takes an eighth of it back, half is forgotten after 5
MASS_SILENCE = 3  # nodes; of two a loss is still about each of them
MASS_SILENCE_PERCENT = 55  # of those that should speak: what they share has failed
FLAPS_FREE = 2  # returns within EVIDENCE_MS: a person pulls a plug, and once more to be sure
HOLD_WINDOWS = 16  # the longest that a flapping node is held down, in lost windows: LAN 96 s
RETURNS_KEPT = 16  # of one node; the hold-down does not grow any more by then
TICK_LATE_MS = 1_000  # woken so much later than asked, we stood still ourselves
LOOPBACK_EVERY_MS = 1_000  # a probe of our own through the broker: 200 bytes a second
LOOPBACK_MS = 2_000  # a probe that is not back by then: a third of the shortest window

# stragglers
STRAGGLER_FACTOR = 3  # times the median of its kind: of such, few end soon
STRAGGLER_SAMPLES = 5  # of its kind that must have ended before one is called slow
STRAGGLER_KEPT = 64  # of the latest of each kind: the median of more is the same
STRAGGLER_MS = 1_000  # what is quicker than this gains nothing by a copy

# plans
PLAN_BYTES = 4 * 1024 * 1024  # 500 actions with 8 KB of params each
PLAN_ACTIONS = 500  # default of IML v2; configurable
PLAN_DEPTH = 64  # nesting of a plan document; templates and params need less than 10
PLAN_VALUES = 200_000  # after YAML anchors are expanded: stops "billion laughs"
PLAN_ERRORS = 100  # reported at once; more help nobody
PLAN_REPAIRS = 50_000  # 500 actions in Python's quotes need 15,000; more was never JSON
PLAN_STARTS = 16  # braces in the text around a plan that are tried as its beginning
CORRECTION_ERRORS = 20  # in one correction prompt: a model forgets what a longer list began with
CORRECTION_RULE_CHARS = 600  # of one rule in it: the parameters of an action fit
CORRECTION_LINE_CHARS = 160  # of the quoted line of a plan in it
FINDING_CHARS = 500  # of one error's text; a key of a plan may have megabytes
SUGGESTION_CHARS = 64  # of a name that "did you mean" compares: longer is no typing mistake
PLAN_YAML_BYTES = 512 * 1024  # the YAML parser reads ~140 KB a second; larger plans are JSON
PLAN_TTL_S = 30 * 24 * 3_600  # a run nobody touched for a month is forgotten, not waiting
LEASE_S = 24 * 3_600  # a longer lease would hold work on a dead node for more than a day
SCHEMA_REFERENCES = 1_000  # that one check of params follows; a driver's own shapes take a few each
PARAMS_DEPTH = 12  # leaves room for dispatch and body around them within MESSAGE_DEPTH
PARAMS_VALUES = 16_000  # leaves room for neighbours within MESSAGE_VALUES
IMPACT_WITHOUT_APPROVAL = 0.7  # what could do more harm asks a person first
CLAIM_CHARS = 256  # of one claim once its params are filled in: device and number are short
MEMORY_KEY_CHARS = 128  # as long as the longest name of a plan
PATH_CHARS = 4_096  # of the file that a plan came from, for people; Linux takes no longer ones
NAME_CHARS = 128  # of any name that people give; our own ids are shorter
APPROVAL_CHARS = 2_000  # of what a plan asks a person: more nobody reads before answering
APPROVAL_OPTIONS = 20  # a person chooses among a handful
OPTION_CHARS = 256  # of one answer: a sentence; plans from language models write whole ones
SELECTOR_CHARS = 1_024  # a selector is one line that a person reads
SELECTOR_DEPTH = 16  # brackets and "not"; more nobody can read

# orchestrator
PRIORITY = 10  # highest of a run, lowest below 0; two steps halve what work counts
NODE_WINDOW = 256  # dispatches held by one node: keeps it busy across a slow commit
ACTIVE_RUNS = 1_000  # core memory stays below ~1 GB at 500 actions each
ACCEPT_MS = 5_000  # no accept by then: the same dispatch goes out again
START_MS = 60_000  # accepted but not started (claims, slots): the node gives it back
RUN_TTL_MS = 24 * 3_600_000  # a run that waits longer than a day is no longer wanted
CANCEL_MS = 30_000  # a node that has not confirmed a cancel by then: unconfirmed
APPROVAL_MS = 60 * 60_000  # people answer within the hour or not at all
WAITING_REASONS = 20  # nodes named by an action that waits; people read five of them
RECENT_RUNS = 1_000  # ended ones still known, so that a repeated result is recognised
RECENT_DISPATCHES = 20_000  # of them, ~10 MB; and late results remembered as kept
POOLS_KEPT = 1_000  # with nobody waiting in them; beyond it they go, for their keys hold selectors
NODES_COMPARED = 4  # of those in turn, by load: two or more spread nearly as well as all
UNTOLD_SWEPT = 4_096  # entries of units that nobody need tell why they wait: first sweep, ~400 KB
QUEUED_RUNS_SWEPT = 64  # runs in a queue: first sweep of the ended ones, whose plans it holds
DEADLINES_SWEPT = 10_000  # in the heap: first sweep of those that mean nothing any more, ~1 MB
ACCEPT_GATHER_MS = 100  # dispatches of so long share a deadline; resending needs nothing finer
RETRY_DELAY_MS = 3_600_000  # backoff 10 from 300 s would reach months; an hour is patience enough
MEMORY_KEYS = 10_000  # of all sessions; the oldest-written go first
MEMORY_VALUE_BYTES = 1024 * 1024  # of one value: what 200 nodes say in 5 KB each
MEMORY_BYTES = 32 * 1024 * 1024  # of their values: the orchestrator keeps them in its own memory
SERVED_AT_ONCE = (
    4  # of a run of priority 0, before others have their turn: they share its warm caches
)
NONCES = 10_000  # remembered; the oldest is forgotten: a day of one submission every 9 s
EVIDENCE_PER_NODE = 1_000  # late results of forgotten runs, for each node and orchestrator start
OUTFLOW_ROWS = 10_000  # copied rows the mover may lag before dispatching stops
OUTFLOW_AGE_MS = 5_000
LEDGER_CHANGES = 40_000  # the ledger may lag before dispatching stops: four for each copied row
LEDGER_ROWS = 200  # changes told by one entry: a message with more results makes a second one
LEDGER_VALUE_BYTES = (
    256  # of a value that the ledger tells in full; a larger one stands as its hash
)
LEDGER_REASON_CHARS = 500  # of a person's reason to go on: a few sentences
LEDGER_DOUBTS = 64  # seals that contradict the ledger, remembered; one is enough to stop
SEAL_ENTRIES = 100  # so many are sealed at the latest, unless SEAL_APART_MS hold them
SEAL_EVERY_MS = 60_000  # and after so long what there is: what nobody witnessed can be rewritten
SEAL_APART_MS = 2_000  # between two seals, for each goes to every node
SEAL_AGAIN_MS = 20_000  # a node that still names an older seal gets this one with its own proof
SEAL_BREAKS = 16  # acknowledged losses of history named by a seal: ~40 bytes each
SEAL_BYTES = 2_048  # of a seal as it travels, with all breaks
SEALS_KNOWN = 64  # documents remembered as verified: a fleet names two or three at a time
WITNESS_STORE_MS = 5_000  # what nodes witnessed is written at most so often
AUDIT_FINDINGS = 100  # told in full; a rewritten ledger has one for each entry
AUDIT_LIST = 1_000  # entries in one answer; more nobody reads
SEALS_KEPT = 16  # refused or given up by a node, as evidence; the oldest go
EVENT_SUBSCRIBERS = 64  # open watch streams
EVENT_QUEUE = 10_000  # events a slow watcher may lag before it is told to reconnect
TIMER_MS = 1_000  # an engine looks at its clock so often: so late it wakes after a suspend
HEARTBEATS_PER_TURN = 20  # a burst must not delay results: 20 verify in ~2 ms
CLIENT_ANSWER_S = 30.0  # the CLI waits this long for an answer: a store behind a slow SD card
CLIENT_RECONNECT_S = 60.0  # who follows a run waits this long for an orchestrator that restarts
SYSTEMD_ANSWER_S = 330.0  # a start is waited for: an orchestrator has 300 s to fold its store
SERVICE_LOG_LINES = 10_000  # shown at once by `service logs`; a person reads 100
DEMO_RUN_S = 90.0  # the demonstration's run takes 13 s on a PC, three times that on a Pi 4
CHAOS_READY_S = (
    120.0  # for a broken mesh to be whole again; a node that flapped is held down for 96 s
)
CHAOS_SEEN_S = (
    40.0  # for what a fault leads to: four lost windows, on a machine that has more to do
)
CHAOS_RUN_S = 120.0  # for its runs to end: they take 5 s, and wait for whoever is held down
EVENT_WRITE_BYTES = 64 * 1024  # of what is told to a watcher at once: the kernel takes it in one go
EVENT_PING_S = 15  # a quiet watch stream shows that it lives, before proxies give it up
RUN_LOGS = 200  # runs whose latest log lines are kept in memory
RUN_LOG_LINES = 2_000  # of each: what a person scrolls through, ~400 KB
REFUSALS_PER_S = 20  # shown to watchers; all are counted
ESCALATE_MS = 10_000  # between two calls of a node for a person; what comes sooner is refused
ESCALATED_MS = 24 * 3_600_000  # such a call is shown for a day
ASSEMBLY_NODE_BYTES = 16 * 1024 * 1024  # of results that come in chunks, of one node: four at once
ASSEMBLY_BYTES = 64 * 1024 * 1024  # of them of all nodes; a Pi keeps room for the rest
ASSEMBLY_MS = 60_000  # without another chunk: forgotten, for the node sends all of it again
HEARTBEATS_WAITING = 20_000  # two bursts of the largest fleet; what comes on top is dropped
HEARTBEATS_WAITING_BYTES = 64 * 1024 * 1024  # that many of 3 KB; nobody has looked at them yet
HEARTBEATS_WAITING_NODE = 8  # a few unanswered ones; who floods drowns itself alone
BEATS_APART_MS = 500  # kept beats of one node; an honest one repeats itself after 667 ms
PLANS_KNOWN = 10_000  # digests remembered as stored, ~1 MB; then all are asked for again
MOVE_ROWS = 1_000  # copied in one transaction, so that no other write waits long
EPOCH_CLOCK_MS = 2 * 366 * 86_400_000  # a clock further ahead of the last change than that is wrong
RECENT_BYTES = (
    8 << 20
)  # committed rows kept for the mover: 10,000 small actions; else it reads them
MOVE_EVERY_MS = 200  # the mover gathers, since a copy for every commit would double the fsyncs
PREVIEWS = 100  # remembered, so that a changed fingerprint can say what changed
API_BODY_BYTES = 4 * PLAN_BYTES  # a plan as a JSON string grows by its escapes
API_RESULT_BYTES = 64 * 1024  # of one result in an answer; the whole is in the store
RUN_LIST = 500  # runs in one answer
APPROVAL_LIST = 500  # questions in one answer, most urgent first: nobody answers more in an hour
ACK_WAIT_MS = 20  # settling is not urgent: a node sends results again after 5 s
ACK_GATHERED = 256  # then the ack goes at once, well below NODE_UNSETTLED
ACK_SETTLED = 1_000  # dispatch ids in one ack: ~100 KB

# telemetry
METRIC_CHARS = 128  # of the name of a metric: module and name, as long as any name
UNIT_CHARS = 16  # "µmol/m²/s" and longer ones fit
TELEMETRY_VALUE = 1e100  # nothing that is measured is larger, and a sum of 10^200 of them is finite
TELEMETRY_METRICS = 200  # names of one node, for ever: a greenhouse has a few dozen
TELEMETRY_SERIES = 200_000  # names of all nodes, ~40 MB of the orchestrator's memory
TELEMETRY_MESSAGE = 1_000  # readings in one message: 2,000 values of MESSAGE_VALUES, ~20 KB
TELEMETRY_GATHER_MS = 1_000  # of a node: one signature a second, whatever is measured meanwhile
TELEMETRY_WAITING = 5_000  # readings held by a node without a session, ~1 MB; the oldest go first
TELEMETRY_CALL_PER_S = 100  # of one call of a driver; what is faster belongs into its result
TELEMETRY_CALL_BURST = 500  # of them at once: a sensor's own buffer
TELEMETRY_PER_S = 50  # readings kept of one node, in the long run: 4.3 million a day, ~70 MB
TELEMETRY_BURST = 180_000  # of them at once: an hour's share
TELEMETRY_MESSAGES_PER_S = (
    20  # of one node, unread; an honest one sends one, and ten while it drains
)
TELEMETRY_MESSAGES_BURST = 1_200  # of them at once: a minute's share
TELEMETRY_LATE_MS = (
    47 * 3_600_000
)  # an older reading is refused: raw ones, that tell a repetition, are kept an hour longer
TELEMETRY_LANE_BYTES = 32 * 1024 * 1024  # of messages not yet verified, of all nodes
TELEMETRY_LANE_NODE_BYTES = 1024 * 1024  # of one node; then its own oldest go
TELEMETRY_TURN_MS = 2  # of verifying telemetry before everything else has its turn
TELEMETRY_ROWS = 500  # written at once, or after TELEMETRY_WRITE_MS: an SD card wears by the write
TELEMETRY_WRITE_MS = 1_000
TELEMETRY_UNWRITTEN = 100_000  # readings held while a disk is slow, ~10 MB; the oldest go first
ROLL_UP_AFTER_MS = 5_000  # after a minute's end: nodes gather for a second, clocks differ a bit
FORGET_ROWS = 5_000  # deleted in one transaction, in ~10 ms: no result waits longer for the file
FORGET_RESULTS = 100  # likewise: they may be large, and few come within UPKEEP_PAUSE_MS
UPKEEP_PAUSE_MS = 50  # between two pieces of upkeep, so that others write meanwhile
COMPACT_AFTER_MS = 30 * 86_400_000  # of a run's end: results and retries come by then, or never
COMPACT_EVERY_MS = 3_600_000  # looked for runs that ended so long ago: an hour more is nothing
COMPACT_RUNS = 500  # looked at in one question, in ~2 ms
COMPACT_ROWS = 200  # changes packed in one transaction, in ~1 ms: as long as other commits wait
# of them; a larger change stays a row, unless it has a plan: to write as much anew would take longer
COMPACT_BYTES = RESULT_CHUNK_BYTES
BEGIN_ANEW_MS = 5_000  # what goes on beside and ended by a bug of ours begins again
UPKEEP_EVERY_MS = 10_000  # looked for work: minutes are rolled up soon after their end
RAW_KEPT_HOURS = 48  # of readings and beats; longer histories are made of roll-ups
MINUTES_KEPT_DAYS = 30
HOURS_KEPT_DAYS = 366  # so that this month can stand beside the same one last year
OUTPUT_STORE_MB = 1_024  # then copies of results go, then the oldest readings: half of what a small SD card has left
TELEMETRY_LISTED = 1_000  # series in one answer; more nobody reads
EXPORT_ROWS = 2_000  # asked for at once by an export, so that no reader waits long

# node
NODE_SLOTS = 4  # actions that run at once; what ends at once takes no slot
NODE_HELD = 256  # dispatches accepted and not finished: the window of the orchestrator
NODE_UNSETTLED_BYTES = (
    64 * 1024 * 1024
)  # of large results that nobody has settled: 16 of the largest
SPILL_MS = 10_000  # cut off for so long, a node begins to write down: an SD card wears by the write
SPILL_READINGS = 500  # or when so many wait
SPILL_EVENTS = 100
SPOOL_EVENTS_ROW = 20  # events of a source written, read and sent together
SPOOL_READINGS = 150_000  # of a node that is cut off: what TELEMETRY_BURST takes from it afterwards
SPOOL_EVENTS = 20_000  # a day of one every 4 s
SPOOL_BYTES = 32 * 1024 * 1024  # of both, on an SD card that others use too
SPOOL_FREE_BYTES = 16 * 1024 * 1024  # of disk that are left to the journal and to others
SPOOL_TURN_MS = 100  # between two messages of a drain: 100,000 readings take 10 s
SPOOL_LOOK_MS = 1_000  # between two looks into an empty one: an idle node shall sleep
SPOOL_UNACKED = 16  # live messages under way: above it a drain waits
SPOOL_PATIENCE_MS = 30_000  # a drain waits for results, but not for one that nobody ever settles
SPOOL_ACKED_MS = 5_000  # a session that stands so long after a message has delivered it
PERMITS_NODE = 16  # of one node that hold at once: a few routines of one machine
PERMITS_NODE_KEPT = 64  # with those that ended before their time: their counts must stay till then
PERMITS = 1_000  # kept at once, ended ones too: a replay reads them all
PERMIT_BYTES = 128 * 1024  # of its body: it travels within a message, beside its signature
PERMIT_ACTIONS = 50  # of one permit: small routines of one machine
PERMIT_BUDGET = 1_000  # runs of one permit; each leaves rows with node and orchestrator
PERMIT_BUDGET_USUAL = 10  # without --budget
PERMIT_MS = 86_400_000  # without --for: a day
PERMIT_LONGEST_MS = 30 * 86_400_000  # as a certificate of a node: a longer absence wants a person
PERMIT_EVERY_MS = 1_000  # at least between two runs by time
PERMIT_TRIES = (
    3  # attempts at what a crash cut short: an action that ends its machine ends no other
)
PERMIT_KEPT_MS = 30 * 86_400_000  # after its end: results that come so late still find it
PERMIT_AGAIN_MS = 30_000  # a permit that a node does not say it holds goes out again
PERMIT_CLOCK_MS = (
    3_600_000  # mesh time is written down so often by a node with permits, for a reboot
)
# of each node, beside its run that waits longest: that always has room, or nothing would ever become
# whole, for at most PERMIT_ACTIONS * PERMIT_TRIES results of RESULT_BYTES
PERMIT_REPORTS = 256  # results that wait for the rest of their run
PERMIT_REPORTS_BYTES = 64 * 1024 * 1024  # of them: what a node keeps of large ones
JOURNALS_KEPT = 3  # that were set aside because they could not be read; somebody may look into them
JOURNAL_FREE_BYTES = (
    4 * 1024 * 1024
)  # of disk: below it nothing that may not be repeated is taken; one largest result fits
JOURNAL_RETRY_MS = 250  # a commit that found the disk full is tried again
JOURNAL_TRIES = 20  # in 5 s, shorter than a lease; then the node ends, and makes pins safe
CHUNK_RESEND_MS = 10_000  # a chunk that nobody answered goes out again: 150 kbit/s carry it by then
NODE_UNSETTLED = 1_024  # and with those whose results nobody has settled yet: 4 windows
RESEND_MS = 5_000  # results that nobody settled go out again
REFUSALS_TOLD_MS = 1_000  # a flood of bad messages costs its node one message a second
TIME_ASK_MS = 2_000  # an unanswered time request goes out again
TIME_ASKED = 3  # questions whose answers still count: the oldest is 14 s old when the fourth leaves
TIME_AGAIN_MS = 5_000  # after an answer that took longer than TIME_ASK_MS
TIME_SYNC_MS = 60_000  # a crystal drifts 6 ms in that time at 100 ppm
LOOK_MS = 100  # a node that did not look at its leases for so long does so before anything else
SETTLED_KEPT_MS = 3_600_000  # settled rows are deleted with a later result, at the latest by then
REFUSAL_CHARS = 300  # of a refusal's text: a refused delegate must fit into one reject
PROGRESS_CHARS = 200  # of what an action says it is doing: one line of a table
FAULT_CHARS = 2_000  # of the text of a fault; more nobody reads in a table
LOG_LINE_BYTES = 4 * 1024  # of one log line of an action
LOG_LINES_PER_ACTION = 2_000  # then one line says that the rest was dropped
LOG_LINES_PER_S = 200  # sent by one node: signing them costs a Pi a tenth of a core
LOG_LINES_BURST = 100  # of them at once, so that a short action's lines come with its result
LOG_TAIL_S = 1.0  # no new line that long after a run: a node that still has some sends 200 by then
LOG_LINES_WAITING = 8_000  # two actions' worth for each pair of slots; then the oldest are dropped
OUTPUT_BYTES = 64 * 1024  # of each stream of a command kept in its result
COMMAND_OUTPUT_BYTES = 16 * 1024 * 1024  # a command that prints more runs wild: it is killed
DRIVER_RESTARTS = 3  # of a child that ends unasked, with nothing good between
DRIVER_STEADY_S = 60  # a child that lived so long ended for another reason than the one before it
SOURCE_VALUES = 40  # of one event of a source: what it saw, in few words
SOURCE_TEXT_CHARS = 256  # of a text among them
SOURCE_EVENTS_WAITING = 1_000  # of all sources of a node while nobody listens; then the oldest go
SOURCE_EVENTS_PER_S = 100  # sent by one node: what a person or a trigger can make use of
I2C_WRITE_BYTES = 8_192  # the kernel's own limit of one message (i2c-dev)
SERIAL_WRITE_BYTES = 64 * 1024  # 3 s at 230,400 baud; the longest timeout sends 690 KB
MQTT_MESSAGES = 1_000  # of one subscription: what fits into a result and a template
MQTT_RECEIVED_BYTES = 512 * 1024  # of the whole connection, packets and all: a flood ends it
MQTT_KEPT_BYTES = 96 * 1024  # of topics and payloads: escaped they still fit into a result
MQTT_PAYLOAD_BYTES = 192 * 1024  # published: as long as params may be
MQTT_TEXT_BYTES = 65_535  # of a topic, user name or password: MQTT 3.1.1, 1.5.3
ARGUMENT_BYTES = 64 * 1024  # of one argument or variable of a command; Linux itself takes 128 KiB
ARGUMENTS_MATCH_MS = (
    25  # of the processor; a node hears nothing meanwhile, and 128 may come at once
)
COMMAND_PROCESSES = 128  # of a command and all that it starts; a build with make -j16 has 50
COMMAND_MEMORY_BYTES = 1024 * 1024 * 1024  # of them together; more would push the node out of a Pi
COMMAND_NICE = 10  # heartbeats and results go before what commands compute
COMMAND_END_MS = 5_000  # after SIGKILL: what is still there hangs in the kernel, on a dead disk
APPLICATIONS_OPEN = 16  # opened by plans and still running
APPLICATION_PROCESSES = 512  # of each: a browser has one for every tab
APPLICATION_MEMORY_BYTES = 4 * 1024 * 1024 * 1024  # of each: a browser with a few heavy pages
ENV_VARIABLES = 100  # set by plans on one node; a program reads a handful
PROCESSES_LISTED = 800  # in one result: 190 bytes each fit into RESULT_BYTES
COMMAND_LINE_CHARS = 1_000  # of a process's command line in a result; Java's go on for pages
TIMEOUT_S = 3_600  # IML v2's maximum of an action
KILL_GRACE_MS = 2_000  # between SIGTERM and SIGKILL of a driver child or command
DRIVER_START_MS = 30_000  # a native library loads in seconds from the SD card of a Pi Zero
DRIVER_LOAD_MS = 15_000  # of a plug-in's import: the node itself must be ready in CHILD_READY_MS
DRIVER_MESSAGE_BYTES = 8 * 1024 * 1024  # one msgpack frame between agent and driver child
DRIVER_MEMORY_BYTES = 1024 * 1024 * 1024  # of a child: a damaged archive may ask for any size
PATH_BYTES = 4_095  # of a path, and NAME_BYTES of each part: Linux's PATH_MAX and NAME_MAX
NAME_BYTES = 255
PATH_PARTS = 100  # of a path: each is an open descriptor while what lies there is worked on
TREE_ENTRIES = 100_000  # visited by one action: a Pi looks at them in a minute
SEARCHED_LINE_CHARS = 4_096  # of a line that is searched; longer ones are data, not text
SEARCHED_TEXT_CHARS = 200  # of a found line in a result
ARCHIVE_ENTRIES = 10_000  # files and folders; each is written and brought to the disk
ARCHIVE_BYTES = 1024 * 1024 * 1024  # packed into or out of one archive: a tenth of a small SD card

# stores
WAL_PRESIZE_BYTES = 4 * 1024 * 1024  # a recycled WAL commits in 0.13 ms, a growing one in 0.2
FREE_SPACE_BYTES = 64 * 1024 * 1024  # below it nothing new is accepted
FREE_SPACE_PART = 20  # or below such a part of a disk, where that is less
WAL_PART = 16  # of what is free, for one write-ahead log, where that is less than WAL_PRESIZE_BYTES
ROOM_LOOK_MS = 1_000  # between two looks at a disk: a log that runs wild fills 100 MB in it
STORE_RETRY_MS = (
    250  # an orchestrator's commit that found the disk full is tried again, until it fits
)


def lease_ms_of(wanted_s: int | None, heartbeat_ms: int, lost_ms: int) -> int:
    """The lease of a dispatch: the lost window, or what the plan wants, but at least two heartbeats.

    A beat may get lost; with a shorter lease every node would end the work before its next one.
    """
    return lost_ms if wanted_s is None else max(wanted_s * 1_000, 2 * heartbeat_ms)


def stop_ms(lease_ms: int) -> int:
    """A cut-off node ends `stop` work after this long without an answered heartbeat."""
    return lease_ms * 9 // 10


def reroute_ms(lease_ms: int) -> int:
    """The orchestrator moves work this long after it last heard: later than `stop_ms`."""
    return lease_ms * 11 // 10


def hold_ms(returns: int, lost_ms: int) -> int:
    """How long a node that returned so often within EVIDENCE_MS is held down: it doubles."""
    doublings = returns - FLAPS_FREE - 1
    return 0 if doublings < 0 else lost_ms * min(1 << doublings, HOLD_WINDOWS)


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast silence is noticed. `lost_ms` is also the lease of a dispatch."""

    heartbeat_ms: int
    lost_ms: int

    @property
    def suspect_ms(self) -> int:
        """Silent this long without a will: shown as suspect, gets nothing new."""
        return self.lost_ms * 2 // 3

    @property
    def finish_ms(self) -> int:
        """How long what runs on a node that is told to end may go on."""
        return self.lost_ms


WAN = Timing(heartbeat_ms=15_000, lost_ms=30_000)
LAN = Timing(heartbeat_ms=2_000, lost_ms=6_000)
TIMINGS = {"wan": WAN, "lan": LAN}
