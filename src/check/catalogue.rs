//! The promises that an echo service is judged by, in the order in which they are.

use super::lab::Lab;
use super::verdict::Outcome;
use super::{datagrams, process, streams};

/// What a promise is about, which decides where it can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// TCP and Unix streams.
    Streams,
    /// UDP.
    Datagrams,
    /// Services that close a connection after a word.
    Messages,
    /// A process on this machine.
    Process,
}

/// A promise of an echo service.
pub(super) struct Promise {
    /// Its identifier: a group, a dot, and a word.
    pub id: &'static str,
    /// What is promised.
    pub sentence: &'static str,
    /// Why that matters.
    pub reason: &'static str,
    /// Where that is written.
    pub source: &'static str,
    /// What it usually is that breaks it.
    pub cause: &'static str,
    pub about: About,
    pub judge: fn(&mut Lab) -> Outcome,
}

impl Promise {
    /// The group that it belongs to.
    pub fn group(&self) -> &'static str {
        self.id.split('.').next().unwrap_or_default()
    }

    /// Whether a list names it, by its identifier or by its group.
    pub fn is_in(&self, list: &[String]) -> bool {
        list.iter().any(|name| name == self.id || name == self.group())
    }
}

macro_rules! promises {
    ($($about:ident $id:literal $judge:path, $sentence:literal, $reason:literal, $source:literal, $cause:literal;)+) => {
        /// All promises.
        pub(super) const ALL: &[Promise] = &[$(Promise {
            id: $id,
            sentence: $sentence,
            reason: $reason,
            source: $source,
            cause: $cause,
            about: About::$about,
            judge: $judge,
        }),+];
    };
}

promises! {
    Streams "bytes.silence" streams::silence,
        "nothing but the echo is sent",
        "A client compares what comes with what it sent; a banner, a prompt or a log line shifts everything after it.",
        "RFC 862: \"any data received is sent back\", and nothing else",
        "a greeting that is written to the connection";
    Streams "bytes.word" streams::word,
        "a word without a newline comes back",
        "TCP has no lines. A service that waits for a newline that the peer never sends waits forever, and so does the peer.",
        "RFC 9293, 3.9.1: a stream of octets; RFC 862",
        "a function that reads lines (`readline`, `fgets`, `BufReader::lines`), or buffered output that is not flushed";
    Streams "bytes.one" streams::one,
        "a single byte comes back",
        "The smallest message there is; what waits for more than it needs shows here.",
        "recv(2): it returns what is there, and does not wait for the length requested",
        "a receive that waits for a whole buffer (`MSG_WAITALL`, `read_exact`), or an off-by-one length";
    Streams "bytes.pieces" streams::pieces,
        "bytes that come one at a time come back one by one",
        "How a stream is cut into segments is the network's choice, and may change at any time.",
        "RFC 9293, 3.9.1",
        "only the first segment is answered, or a parser that expects whole messages";
    Streams "bytes.sizes" streams::sizes,
        "messages of all sizes come back, from 1023 bytes to a megabyte",
        "1024, 1460, 4096, 16384 and 65536 are the sizes of buffers and segments: one byte more is a second read.",
        "recv(2), send(2)",
        "one `recv` and one `send` per message: what is longer than the buffer, or than what `send` took, is lost";
    Streams "bytes.newline" streams::newline,
        "CR and LF come back as they are",
        "An echo of bytes does not know lines. A translated newline makes every file and every signature wrong.",
        "RFC 862; RFC 854 is about telnet alone",
        "a stream in text mode, a terminal or a pty in between, or `strip()` followed by an added newline";
    Streams "bytes.nul" streams::nul,
        "zero bytes come back",
        "A zero byte ends a C string; in a stream it is a byte like any other.",
        "RFC 862; string(3)",
        "`strlen`, `strcpy` or `%s` on what `recv` returned, in place of its return value";
    Streams "bytes.telnet" streams::telnet,
        "telnet's IAC sequences come back",
        "0xFF begins a command for telnet servers, which answer or double it.",
        "RFC 854; RFC 862 has no commands",
        "a telnet library or a terminal server in between";
    Streams "bytes.utf8" streams::utf8,
        "bytes that are not UTF-8, or are cut inside a character, come back",
        "Where a read ends is a matter of chance: sooner or later every service gets half a character.",
        "RFC 3629, section 3; RFC 862",
        "bytes that were decoded to a string and encoded again (`decode(errors=...)`, `from_utf8_lossy`)";
    Streams "bytes.values" streams::values,
        "all 256 values of a byte come back",
        "Every byte is data. What is lost here is lost in every file.",
        "RFC 862",
        "text functions on binary data, or a signed char";
    Streams "bytes.order" streams::order,
        "messages come back in order, each exactly once",
        "That is what TCP does; a service with several threads or tasks for one connection can undo it.",
        "RFC 9293, 2.2: reliable, in-order",
        "several workers for one connection, or a retry of a send that had succeeded in part";
    Streams "buffers.pipelined" streams::pipelined,
        "messages that are sent without waiting for answers all come back",
        "A read may return several messages at once, or the end of one with the beginning of the next.",
        "recv(2); edge-triggered: epoll(7), \"possible pitfalls\"",
        "one answer per read, as if it were a message; or an edge-triggered loop that reads once per event";
    Streams "buffers.partial-send" streams::partial_send,
        "what the peer reads late arrives complete",
        "`send` may take only a part. The service must keep the rest until the socket is writable again.",
        "send(2): it returns the number of bytes sent; EAGAIN",
        "`send` took a part and the rest was dropped: its return value was ignored; or EAGAIN was taken for the end";
    Streams "buffers.others" streams::others,
        "a peer that does not read does not stop the others",
        "A blocking send waits as long as that one peer likes.",
        "send(2): it blocks, unless the socket is non-blocking",
        "a blocking send in the one thread that serves all, or a loop that retries EAGAIN at once";
    Streams "buffers.backpressure" streams::backpressure,
        "a bounded amount is taken from a peer that never reads",
        "What is received and cannot be sent takes memory. A service that goes on reading lets any peer use up all of it.",
        "RFC 9293, 3.8.6: the window is how a receiver pushes back",
        "an output buffer without a limit: `write` without `drain` (asyncio), an unbounded queue, no pause of reading";
    Streams "ends.half-close" streams::half_close,
        "after the peer has closed its side, all that it sent still comes back",
        "`cat file | nc host 7` closes its side at once; the other direction is still open, and the echo is on its way.",
        "RFC 9293, 3.6; shutdown(2); ncat was wrong about it for years (nmap issue 962)",
        "the connection is closed when `recv` returns 0, while bytes are still unsent or unread";
    Streams "ends.end" streams::end,
        "after the peer has closed its side and has everything, the connection ends",
        "Otherwise both sides wait forever, and each such connection is a descriptor that is never returned.",
        "recv(2): 0 is the end of the stream; close(2)",
        "a return value of 0 from `recv` is ignored, so that the end is never seen, or is taken for an empty message";
    Streams "ends.close" streams::close,
        "a peer that closes at once with its echo on the way does no harm",
        "Its kernel answers the echo with a reset: the next send fails with EPIPE, and SIGPIPE ends a careless process.",
        "send(2), EPIPE; signal(7), SIGPIPE; RFC 1122, 4.2.2.13",
        "SIGPIPE is not ignored, or an exception from `send` ends the loop";
    Streams "ends.reset" streams::reset,
        "a reset in the middle of a stream leaves the other connections alone",
        "ECONNRESET is the error of one connection, and any call may return it.",
        "recv(2), ECONNRESET; RFC 9293, 3.5.3",
        "an error that leaves the loop that serves all (`?`, an uncaught exception)";
    Streams "ends.survives" streams::survives,
        "the service goes on after connections that end at once, in every way",
        "Port scanners, health checks and balancers connect and say nothing.",
        "accept(2): a connection may be gone before it is accepted (ECONNABORTED)",
        "an error of `accept`, `getpeername` or the first read that ends the loop";
    Streams "ends.idle" streams::idle,
        "a connection that says nothing for a while is still served",
        "People think before they type.",
        "RFC 1122, 4.2.3.6: keep-alives, if any, are for two hours",
        "a receive timeout of a second, or a limit on the life of a connection";
    Streams "many.sequence" streams::sequence,
        "connections one after another are all served",
        "The first server of every tutorial accepts once, and exits.",
        "accept(2)",
        "`accept` outside the loop, or a listener that is closed with the first connection";
    Streams "many.silent-first" streams::silent_first,
        "a silent connection in front blocks nobody",
        "A service that waits in `recv` for one peer serves nobody else.",
        "recv(2): it waits; select(2), poll(2), epoll(7)",
        "one connection served to its end before the next is accepted (the sequential server)";
    Streams "many.at-once" streams::at_once,
        "many connections at once are all served",
        "Each needs its state, its descriptor and its turn.",
        "getrlimit(2), RLIMIT_NOFILE; select(2): FD_SETSIZE",
        "a limit on workers or descriptors, or `select` beyond 1024";
    Streams "many.burst" streams::burst,
        "connections that come at the same moment are all served",
        "An edge-triggered listener reports many peers with one event; a full backlog drops the rest.",
        "epoll(7); listen(2): the backlog, and somaxconn",
        "one `accept` per event of an edge-triggered poll, or a backlog of 1 or 5";
    Streams "many.fairness" streams::fairness,
        "a busy connection does not starve a quiet one",
        "One peer can keep a socket readable forever; a loop that reads until EAGAIN never gets to the others.",
        "epoll(7), \"starvation\"",
        "reading one socket until it would block, without a budget";
    Streams "many.returned" streams::returned,
        "resources are returned: after a thousand connections the next works like the first",
        "A service that leaks a descriptor or a thread per connection works in a demonstration, and fails at night.",
        "close(2); accept(2), EMFILE",
        "sockets that are not closed on every path, threads that are not joined, maps that only grow";
    Messages "messages.closes" streams::word_closes,
        "after echoing the word the service closes the connection",
        "The word is the peer's way to say that it is done.",
        "what --terminator of `echoloop serve` promises",
        "the word is compared with its newline, or the connection is closed before the echo has left";
    Messages "messages.split" streams::word_split,
        "the word is recognised when it comes in two segments",
        "How a stream is cut is the network's choice.",
        "RFC 9293, 3.9.1",
        "each read is compared with the word";
    Messages "messages.only-equal" streams::word_only,
        "words that only begin or end with it do not close the connection",
        "`goodbye` is not `bye`.",
        "what --terminator of `echoloop serve` promises",
        "`in`, `contains`, `startswith` or `endswith` on what was read";
    Datagrams "datagrams.answer" datagrams::answer,
        "a datagram is answered",
        "Without that there is nothing to judge.",
        "RFC 862, UDP based echo service",
        "nobody listens there, or a firewall is in between";
    Datagrams "datagrams.source" datagrams::source,
        "the answer comes from the address that was asked",
        "A client does not accept an answer from another address than it asked; a connected socket does not even see it.",
        "RFC 1122, 4.1.3.5; ip(7), IP_PKTINFO",
        "a socket bound to all addresses on a host with several, or a second socket that answers";
    Datagrams "datagrams.sizes" datagrams::sizes,
        "datagrams of all sizes come back whole, from nothing to 65,507 bytes",
        "An empty datagram is one too, and a buffer that is too short silently cuts off the rest.",
        "RFC 768; recv(2), MSG_TRUNC",
        "a buffer of 512, 1024 or 4096 bytes, or a length of 0 that is taken for the end";
    Datagrams "datagrams.values" datagrams::values,
        "all 256 values of a byte come back",
        "Every byte is data.",
        "RFC 862",
        "text functions on binary data";
    Datagrams "datagrams.once" datagrams::once,
        "each datagram comes back once",
        "A network may repeat a datagram; a service has no reason to.",
        "RFC 862",
        "an answer that is sent again, or sent to all";
    Datagrams "datagrams.boundaries" datagrams::boundaries,
        "datagrams that arrive together are answered one by one",
        "A datagram is a message: it is neither joined with the next nor cut.",
        "RFC 768; udp(7)",
        "an edge-triggered loop that receives once per event, or a buffer that is shared by several datagrams";
    Datagrams "datagrams.many" datagrams::many,
        "each of many senders gets its own answers",
        "There is one socket for all of them.",
        "recvfrom(2)",
        "the socket was connected to the first sender, or the address of the last one is used";
    Datagrams "datagrams.low-port" datagrams::low_port,
        "datagrams from the ports of other simple services are not answered",
        "Two services that answer everything, once started by one forged datagram, never stop.",
        "CERT CA-1996-01",
        "nobody thought of it; most services answer";
    Datagrams "datagrams.loss" datagrams::loss,
        "of a hundred at once, how many are lost is reported",
        "UDP may lose some: that is no failure, but worth knowing.",
        "RFC 768; udp(7): a full buffer drops",
        "a receive buffer that is too small, or a slow service";
    Process "process.idle" process::idle,
        "nothing is done while nothing comes",
        "A loop that spins keeps a core busy, and is noticed only when there are many.",
        "epoll(7), poll(2)",
        "a poll with a timeout of 0, a level-triggered interest in writing, or an event that is never cleared";
    Process "process.descriptors" process::descriptors,
        "descriptors are returned when connections have ended",
        "What is not closed stays open until the process ends.",
        "close(2); proc(5), /proc/PID/fd",
        "a socket that is not closed after an error, or after the peer's end";
    Process "process.memory-silent" process::memory_silent,
        "a silent connection takes little memory",
        "Most connections are silent most of the time.",
        "proc(5), /proc/PID/smaps_rollup and statm",
        "a large buffer, or a thread with its stack, per connection";
    Process "process.memory-unreading" process::memory_unreading,
        "a connection that never reads takes bounded memory",
        "What a peer leaves unread fills the service's memory.",
        "proc(5), /proc/PID/smaps_rollup and statm",
        "an output buffer without a limit";
}
