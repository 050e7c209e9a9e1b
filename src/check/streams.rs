//! Experiments on streams.

use std::time::{Duration, Instant};

use super::lab::Lab;
use super::verdict::{Finding, Outcome, Trouble};
use crate::count::counted;

/// How long a connection is listened to on which nothing should come.
const SILENCE: Duration = Duration::from_millis(250);

/// How long a connection says nothing that should live.
const IDLE: Duration = Duration::from_millis(1500);

/// What is sent to a peer that is to hold it back for us.
const LATE: usize = 8 * 1024 * 1024;

/// What is sent before our side is closed.
const FINISHED: usize = 4 * 1024 * 1024;

/// What is sent and read before our side is closed.
const MUCH: usize = 256 * 1024;

/// More than any kernels hold between two sockets by default: who takes so much keeps it.
pub(super) const UNBOUNDED: usize = 32 * 1024 * 1024;

/// Connections that come and go.
pub(super) const RETURNED: usize = 1000;

/// Connections one after another, and how many at least where each takes long.
const SEQUENCE: usize = 30;
const MIN_SEQUENCE: usize = 5;

/// How long sizes are tried that are not the usual ones.
const BRIEF: Duration = Duration::from_millis(500);

/// Messages one after another, and how many at least where each takes long.
const IN_ORDER: usize = 200;
const MIN_IN_ORDER: usize = 20;

/// Connections that are opened together where each takes long.
const TOGETHER: usize = 10;

/// From how long on a connection with a message and its echo takes long.
const SLOW: Duration = Duration::from_millis(10);

/// Messages of the quiet connection while another is busy.
const QUESTIONS: u32 = 3;

/// How long the busy connection is busy before each of them, at most.
const BUSY: Duration = Duration::from_millis(250);

/// What it has on its way at any time.
const ALWAYS: usize = 1024 * 1024;

/// Bytes of the busy connection in which a quiet one must have had its turn, however slow the machine is.
const STARVED: u64 = 64 * 1024 * 1024;

/// The most that a busy connection sends, after which there is nothing left to find out.
pub(super) const FED: usize = 224 * 1024 * 1024;

fn echoes(lab: &mut Lab, bytes: &[u8]) -> Outcome {
    let line = lab.connect()?;
    lab.send(line, bytes);
    if lab.by_line && !bytes.ends_with(b"\n") {
        lab.send(line, b"\n");
    }
    lab.await_echo(line)?;
    // What is added may come late.
    lab.rest(Duration::from_millis(5))?;
    let outcome = lab.verify(line).map_err(|trouble| blame(trouble, &format!("'{}'", show(bytes))));
    lab.close(line);
    outcome
}

fn show(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(24)].escape_ascii().to_string();
    if bytes.len() > 24 { format!("{shown}... ({})", counted(bytes.len(), "byte")) } else { shown }
}

pub(super) fn silence(lab: &mut Lab) -> Outcome {
    let line = lab.connect()?;
    lab.run(SILENCE, |lab| lab.line(line).closed.is_some())?;
    let extra = lab.line(line).extra.clone();
    if extra.is_empty() {
        return Ok(());
    }
    // From here on it is known, and nothing else is blamed for it.
    lab.greeting = extra.len();
    Err(Finding::new("nothing", &format!("'{}'", show(&extra))).into())
}

pub(super) fn word(lab: &mut Lab) -> Outcome {
    let line = lab.connect()?;
    lab.send(line, b"echo");
    let Err(trouble) = lab.await_echo(line) else { return Ok(()) };
    let Trouble::Broken(finding) = &trouble else { return Err(trouble) };
    if !finding.timing {
        return Err(trouble);
    }
    lab.send(line, b"\n");
    lab.by_line = lab.await_echo(line).is_ok();
    lab.silent = !lab.by_line && lab.line(line).received == 0;
    if lab.by_line {
        let finding = Finding::new("'echo'", "nothing until a newline followed").timing();
        return Err(finding.into());
    }
    if lab.silent {
        return Err(Finding {
            cause: Some("the service does not echo, is stuck, or nobody accepts"),
            ..finding.clone()
        }
        .into());
    }
    Err(trouble)
}

pub(super) fn one(lab: &mut Lab) -> Outcome {
    echoes(lab, b"x")
}

pub(super) fn pieces(lab: &mut Lab) -> Outcome {
    let line = lab.connect()?;
    let message = lab.message(48);
    for (at, byte) in message.iter().enumerate() {
        lab.send(line, &[*byte]);
        // The first few are waited for, so that each is a segment and a read of its own.
        if at < 16 && !lab.by_line {
            lab.await_echo(line)?;
        }
    }
    lab.await_echo(line)
}

pub(super) fn sizes(lab: &mut Lab) -> Outcome {
    let around = [1024, 1460, 4096, 16384, 65536].into_iter().flat_map(|size| [size - 1, size, size + 1]);
    for size in around.chain([1_000_000, 1 << 20]) {
        let line = lab.connect()?;
        lab.ping(line, size).map_err(|trouble| blame(trouble, &format!("a message of {}", counted(size, "byte"))))?;
        lab.close(line);
    }
    // Further ones over one connection: as many as a slow path has time for.
    let (line, began) = (lab.connect()?, Instant::now());
    let others = [512, 1000, 1500, 2000, 2048, 5000, 8192, 10_000, 32_768, 50_000];
    for size in others.into_iter().flat_map(|size| [size - 1, size, size + 1]).take_while(|_| began.elapsed() < BRIEF) {
        lab.ping(line, size).map_err(|trouble| blame(trouble, &format!("a message of {}", counted(size, "byte"))))?;
    }
    Ok(())
}

pub(super) fn newline(lab: &mut Lab) -> Outcome {
    for bytes in [&b"a\nb\n"[..], b"a\r\nb\r\n", b"a\rb", b"\n", b"\r\n\r\n\n\n", b" a \n"] {
        echoes(lab, bytes)?;
    }
    Ok(())
}

pub(super) fn nul(lab: &mut Lab) -> Outcome {
    [&b"a\0b"[..], b"\0", b"\0\0\0a", b"a\0\0"].into_iter().try_for_each(|bytes| echoes(lab, bytes))
}

pub(super) fn telnet(lab: &mut Lab) -> Outcome {
    [&b"a\xff\xfd\x01b"[..], b"\xff\xff", b"\xff\xf6"].into_iter().try_for_each(|bytes| echoes(lab, bytes))
}

pub(super) fn utf8(lab: &mut Lab) -> Outcome {
    // With a byte order mark, which text functions like to take away.
    for bytes in [&b"caf\xc3\xa9"[..], b"\xef\xbb\xbfa", b"\xe2\x82", b"\xc3\x28\xa0\xa1", b"\xf0\x9f\x98\x80"] {
        echoes(lab, bytes)?;
    }
    let line = lab.connect()?;
    for half in ["\u{20ac}".as_bytes(), "\u{1f600}".as_bytes()].iter().flat_map(|character| character.chunks(2)) {
        lab.send(line, half);
        if !lab.by_line {
            lab.await_echo(line)?;
        }
    }
    if lab.by_line {
        lab.send(line, b"\n");
    }
    lab.await_echo(line)
}

pub(super) fn values(lab: &mut Lab) -> Outcome {
    let all: Vec<u8> = (0..=255).collect();
    echoes(lab, &all)
}

pub(super) fn order(lab: &mut Lab) -> Outcome {
    let line = lab.connect()?;
    let began = Instant::now();
    for number in 0..IN_ORDER {
        if number >= MIN_IN_ORDER && lab.is_long(began) {
            break;
        }
        lab.ping(line, 24)?;
    }
    lab.rest(Duration::from_millis(20))?;
    lab.verify(line)
}

pub(super) fn pipelined(lab: &mut Lab) -> Outcome {
    let line = lab.connect()?;
    for size in 0..300 {
        let message = lab.message(1 + size);
        lab.send(line, &message);
    }
    lab.await_echo(line)
}

pub(super) fn partial_send(lab: &mut Lab) -> Outcome {
    let line = lab.dial(true)?;
    lab.await_open(line)?;
    let taken = lab.flood(line, LATE)?;
    lab.resume(line)?;
    let sent = format!("{} before any of the echo was read", counted(taken, "byte"));
    lab.await_echo(line).map_err(|trouble| blame(trouble, &sent))
}

pub(super) fn others(lab: &mut Lab) -> Outcome {
    let stuck = lab.dial(true)?;
    lab.await_open(stuck)?;
    lab.flood(stuck, LATE)?;
    let outcome = lab.connect().and_then(|line| lab.ping(line, 64));
    lab.reset(stuck);
    outcome.map_err(|trouble| blame(trouble, "a message while another connection did not read its echo"))
}

/// Says of a finding what was done.
fn blame(trouble: Trouble, sent: &str) -> Trouble {
    match trouble {
        Trouble::Broken(finding) => Finding { sent: sent.to_owned(), ..finding }.into(),
        other => other,
    }
}

pub(super) fn backpressure(lab: &mut Lab) -> Outcome {
    let line = lab.dial(true)?;
    lab.await_open(line)?;
    let taken = lab.flood(line, UNBOUNDED)?;
    lab.reset(line);
    if taken < UNBOUNDED {
        return Ok(());
    }
    Err(Finding::new("an endless stream, without reading the echo", &format!("all {} MiB were accepted", taken >> 20))
        .into())
}

pub(super) fn half_close(lab: &mut Lab) -> Outcome {
    let line = lab.dial(true)?;
    lab.await_open(line)?;
    // More than a send buffer holds, so that some of it waits in the service when the end comes.
    let message = lab.message(FINISHED);
    lab.send(line, &message);
    lab.half_close(line);
    lab.rest(Duration::from_millis(100))?;
    lab.resume(line)?;
    lab.await_echo(line).map_err(|trouble| blame(trouble, &format!("{}, then a half-close", counted(FINISHED, "byte"))))
}

pub(super) fn end(lab: &mut Lab) -> Outcome {
    let line = lab.connect()?;
    lab.ping(line, 16)?;
    lab.half_close(line);
    lab.await_end(line, "16 bytes, then a half-close")?;
    lab.verify(line)?;
    // It may depend on how much there was; that it comes back is another promise.
    let line = lab.connect()?;
    match lab.ping(line, MUCH) {
        Err(Trouble::Broken(_)) => return Ok(()),
        outcome => outcome?,
    }
    lab.half_close(line);
    lab.await_end(line, &format!("{}, then a half-close", counted(MUCH, "byte")))
}

pub(super) fn close(lab: &mut Lab) -> Outcome {
    let mut close = || {
        // With one send of the service on the way, and with several: the second fails in another way (EPIPE).
        for size in [16, 64 * 1024, 100_000, 150_000, 200_000] {
            let line = lab.connect()?;
            let message = lab.message(size);
            lab.send(line, &message);
            lab.vanish(line); // what comes now is answered with a reset (RFC 1122, 4.2.2.13)
            let line = lab.connect()?;
            lab.send(line, b"x");
            lab.close(line);
        }
        lab.rest(Duration::from_millis(50))?;
        lab.serves()
    };
    close().map_err(|trouble| blame(trouble, "a new connection, after others were closed with their echoes on the way"))
}

pub(super) fn reset(lab: &mut Lab) -> Outcome {
    let bystander = lab.connect()?;
    lab.ping(bystander, 16)?;
    for _ in 0..3 {
        let line = lab.dial(true)?;
        lab.await_open(line)?;
        let message = lab.message(64 * 1024);
        lab.send(line, &message);
        lab.rest(Duration::from_millis(10))?;
        lab.reset(line);
    }
    lab.rest(Duration::from_millis(30))?;
    lab.ping(bystander, 16).map_err(|trouble| blame(trouble, "a message, after other connections were reset"))
}

pub(super) fn survives(lab: &mut Lab) -> Outcome {
    let line = lab.connect()?;
    lab.close(line);
    let line = lab.connect()?;
    lab.reset(line);
    let line = lab.dial(false)?;
    lab.reset(line);
    let line = lab.connect()?;
    lab.half_close(line);
    lab.rest(Duration::from_millis(30))?;
    lab.serves().map_err(|trouble| {
        blame(trouble, "a new connection, after others were closed or reset without sending anything")
    })
}

pub(super) fn idle(lab: &mut Lab) -> Outcome {
    let (line, silent) = (lab.connect()?, lab.connect()?);
    lab.ping(line, 64)?;
    lab.rest(IDLE)?;
    lab.ping(line, 64).map_err(|trouble| blame(trouble, "a message, after 1.5 s of silence"))?;
    // Whoever has said nothing yet is not spoken to either. Whether it is served beside the other is another promise.
    lab.verify(silent).map_err(|trouble| blame(trouble, "nothing for 1.5 s"))
}

pub(super) fn sequence(lab: &mut Lab) -> Outcome {
    let began = Instant::now();
    for number in 0..SEQUENCE {
        if number >= MIN_SEQUENCE && lab.is_long(began) {
            break;
        }
        let sent = format!("a message on connection {} of {SEQUENCE}, one after another", number + 1);
        lab.serves().map_err(|trouble| blame(trouble, &sent))?;
    }
    Ok(())
}

pub(super) fn silent_first(lab: &mut Lab) -> Outcome {
    let silent = lab.connect()?;
    lab.rest(Duration::from_millis(10))?;
    let line = lab.connect()?;
    lab.ping(line, 16).map_err(|trouble| blame(trouble, "a message while an older connection was silent"))?;
    lab.ping(silent, 16).map_err(|trouble| blame(trouble, "a message on the silent connection"))
}

pub(super) fn at_once(lab: &mut Lab) -> Outcome {
    let many = lab.many;
    let mut lines = Vec::new();
    while lines.len() < many {
        // One by one as long as that is fast, for many that come together are another promise.
        let began = Instant::now();
        let together = if lines.is_empty() || lab.round_trip < SLOW { 1 } else { TOGETHER.min(many - lines.len()) };
        let first = lines.len();
        let sent = |at: usize| format!("a message on connection {} of {many} at once", first + at + 1);
        for at in 0..together {
            lines.push(lab.dial(false).map_err(|trouble| blame(trouble, &sent(at)))?);
        }
        for (at, line) in lines[first..].iter().enumerate() {
            lab.await_open(*line).map_err(|trouble| blame(trouble, &sent(at)))?;
            let message = lab.message(16);
            lab.send(*line, &message);
        }
        for (at, line) in lines[first..].iter().enumerate() {
            lab.await_echo(*line).map_err(|trouble| blame(trouble, &sent(at)))?;
        }
        lab.round_trip = began.elapsed();
    }
    all_answer(lab, &lines, |number| format!("a second message on connection {number} of {many}"))
}

/// Sends a message on each of the connections, and then awaits the answers; `sent` says what it was, of which connection,
/// counted from one.
fn all_answer(lab: &mut Lab, lines: &[usize], sent: impl Fn(usize) -> String) -> Outcome {
    for line in lines {
        let message = lab.message(16);
        lab.send(*line, &message);
    }
    for (at, line) in lines.iter().enumerate() {
        lab.await_echo(*line).map_err(|trouble| blame(trouble, &sent(at + 1)))?;
    }
    Ok(())
}

pub(super) fn burst(lab: &mut Lab) -> Outcome {
    let many = lab.many;
    let lines = (0..many).map(|_| lab.dial(false)).collect::<Result<Vec<_>, _>>()?;
    for line in &lines {
        lab.await_open(*line)?;
    }
    all_answer(lab, &lines, |number| format!("a message on connection {number} of {many} opened at once"))
}

pub(super) fn fairness(lab: &mut Lab) -> Outcome {
    let (busy, quiet) = (lab.connect()?, lab.connect()?);
    let piece = lab.message(64 * 1024);
    // It is fed all the time, or a service that is unfair would find the time to be fair.
    let feed = |lab: &mut Lab| {
        while lab.outstanding(busy) < ALWAYS && lab.may_send() {
            lab.send(busy, &piece);
        }
    };
    let sent = "a message while another connection was busy";
    for _ in 0..QUESTIONS {
        let before = lab.line(busy).received;
        lab.run(BUSY, |lab| {
            feed(lab);
            lab.line(busy).received >= before + STARVED / 8
        })?;
        let message = lab.message(16);
        lab.send(quiet, &message);
        let (patience, before) = (lab.patience, lab.line(busy).received);
        lab.run(patience, |lab| {
            feed(lab);
            lab.has_echo(quiet) || lab.line(busy).received >= before + STARVED
        })?;
        if !lab.has_echo(quiet) && lab.line(busy).received >= before + STARVED {
            let got = format!("nothing, while {} MiB came back on the busy connection", STARVED >> 20);
            return Err(Finding::new(sent, &got).timing().into());
        }
        lab.verify(quiet).map_err(|trouble| blame(trouble, sent))?;
    }
    lab.await_echo(busy)
}

pub(super) fn returned(lab: &mut Lab) -> Outcome {
    let began = Instant::now();
    let limit = 8 * lab.patience;
    for number in 0..RETURNED {
        let sent = format!("a new connection, after {} one after another", counted(number, "other"));
        lab.serves().map_err(|trouble| blame(trouble, &sent))?;
        if number % 50 == 49 {
            // Those that are closed wait for the service's end, and their descriptors are ours meanwhile.
            let farewell = lab.farewell;
            lab.run(farewell, |lab| lab.reactor.len() < 50)?;
            let (took, so_far) = (began.elapsed(), number + 1);
            if took * (RETURNED / so_far) as u32 > 2 * limit || took > limit {
                return Err(Trouble::Unjudged(format!(
                    "{} took {:.1} s: too slow to try a thousand",
                    counted(so_far, "connection"),
                    took.as_secs_f64()
                )));
            }
        }
    }
    Ok(())
}

/// The word, and what it must be for there to be something to judge.
fn terminator(lab: &Lab) -> Result<String, Trouble> {
    lab.terminator.clone().ok_or(Trouble::unjudged("needs --terminator"))
}

pub(super) fn word_closes(lab: &mut Lab) -> Outcome {
    let word = terminator(lab)?;
    let line = lab.connect()?;
    lab.send(line, b"hello\n");
    lab.await_echo(line)?;
    lab.send(line, format!("{word}\n").as_bytes());
    lab.await_echo(line)?;
    lab.await_end(line, &format!("'hello\\n', '{word}\\n'"))?;
    lab.verify(line)
}

pub(super) fn word_split(lab: &mut Lab) -> Outcome {
    let word = terminator(lab)?;
    if word.len() < 2 {
        return Err(Trouble::unjudged("a word of one byte cannot be split"));
    }
    let line = lab.connect()?;
    let (first, second) = word.as_bytes().split_at(word.len() / 2);
    lab.send(line, first);
    lab.rest(Duration::from_millis(30))?;
    lab.send(line, second);
    lab.rest(Duration::from_millis(30))?;
    lab.send(line, b"\n");
    // A service that takes it for a message without its newline has closed before the newline came.
    let sent = format!("'{}', '{}', newline", first.escape_ascii(), second.escape_ascii());
    lab.await_end(line, &sent)?;
    match lab.line(line).received {
        received if received >= word.len() as u64 => Ok(()),
        received => Err(Finding::new(&sent, &format!("{}, and the end", counted(received, "byte"))).into()),
    }
}

pub(super) fn word_only(lab: &mut Lab) -> Outcome {
    let word = terminator(lab)?;
    for text in
        [format!("good{word}\n"), format!("{word}{word}\n"), format!("{word} now\n"), format!("say {word} now\n")]
    {
        let line = lab.connect()?;
        lab.send(line, text.as_bytes());
        let sent = format!("'{}'", text.escape_debug());
        lab.await_echo(line).map_err(|trouble| blame(trouble, &sent))?;
        lab.rest(Duration::from_millis(20))?;
        lab.send(line, b"still here?\n");
        lab.await_echo(line).map_err(|trouble| blame(trouble, &format!("{sent}, and then another line")))?;
    }
    Ok(())
}
