//! Experiments on datagrams. What is lost is sent again before it is judged: losing is what UDP may do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::Token;

use super::lab::Lab;
use super::verdict::{Finding, Outcome, Stop, Trouble};
use crate::count::counted;
use crate::reactor::Envelope;
use crate::reactor::address::Endpoint;

/// How often a datagram is sent until it is taken for unanswered.
const TRIES: usize = 4;

/// The largest datagram that fits into a frame of Ethernet whole.
const ETHERNET: usize = 1472;

/// Characters shown of what was sent and of what came.
const SHOWN: usize = 24;

/// How long something is awaited that should not come.
const NOTHING: Duration = Duration::from_millis(200);

/// The ports of services that answer (IANA): echo, daytime, qotd, chargen, time.
const SIMPLE_SERVICES: [u16; 5] = [7, 13, 17, 19, 37];

/// Sends a datagram until it is answered, and returns the answer.
fn ask(lab: &mut Lab, port: Token, bytes: &[u8]) -> Result<Vec<u8>, Trouble> {
    let patience = lab.patience;
    for _ in 0..TRIES {
        if !lab.post(port, bytes) {
            let note = format!("a datagram of {} cannot be sent from here", counted(bytes.len(), "byte"));
            // A path may have no room for large ones. Where not even small ones leave, nothing has been judged.
            return Err(if bytes.len() > ETHERNET { Trouble::Note(note) } else { Trouble::Unjudged(note) });
        }
        let until = Instant::now() + patience / TRIES as u32;
        loop {
            let caught = lab.catch(1, until.saturating_duration_since(Instant::now()))?;
            if caught.is_empty() {
                break;
            }
            // What was asked before may be answered late, or twice.
            let is_late = |answer: &[u8]| answer != bytes && lab.posted.iter().any(|posted| posted == answer);
            let mut answers = caught.into_iter().filter(|(token, _, answer)| *token == port && !is_late(answer));
            if let Some((_, _, answer)) = answers.next() {
                return Ok(answer);
            }
        }
    }
    let error = lab.datagrams.protocol_mut().error.take();
    let got = error.map_or_else(|| format!("no answer in {TRIES} attempts"), |error| format!("no answer: {error}"));
    Err(Finding::new(&format!("a datagram of {}", counted(bytes.len(), "byte")), &got).timing().into())
}

/// Collects up to so many answers, as long as they keep coming.
fn collect(lab: &mut Lab, count: usize, quiet: Duration) -> Result<Vec<(Token, Envelope, Vec<u8>)>, Stop> {
    let mut all = Vec::new();
    while all.len() < count {
        let caught = lab.catch(1, quiet)?;
        if caught.is_empty() {
            break;
        }
        all.extend(caught);
    }
    Ok(all)
}

fn same(sent: &[u8], answer: &[u8]) -> Outcome {
    if sent == answer {
        return Ok(());
    }
    let equal = sent.iter().zip(answer).take_while(|(sent, came)| sent == came).count();
    let [wanted, came] =
        [sent, answer].map(|bytes| bytes[equal..].escape_ascii().to_string().chars().take(SHOWN).collect::<String>());
    let length = |bytes: &[u8]| counted(bytes.len(), "byte").to_string();
    let got = format!("{}; at byte {equal}: '{came}' instead of '{wanted}'", length(answer));
    Err(Finding::new(&format!("a datagram of {}", length(sent)), &got).into())
}

pub(super) fn answer(lab: &mut Lab) -> Outcome {
    let port = lab.port(0)?;
    let message = lab.message(16);
    let outcome = ask(lab, port, &message);
    lab.silent = outcome.is_err();
    outcome.map(|_| ())
}

pub(super) fn source(lab: &mut Lab) -> Outcome {
    let Endpoint::Udp(target) = lab.endpoint else { return Ok(()) };
    let port = lab.port(0)?;
    let patience = lab.patience;
    let mut answers = 0;
    // It may depend on the size, or on whose turn it is.
    for size in [16, 1, 64, 512, 1472, 1473, 8192, 0].into_iter().cycle().take(4 * TRIES) {
        let message = lab.message(size);
        lab.post(port, &message);
        let caught = lab.catch(1, patience / 2 / TRIES as u32)?;
        answers += caught.len();
        let here =
            |from: SocketAddr| from.ip().to_canonical() == target.ip().to_canonical() && from.port() == target.port();
        if let Some((_, strange, _)) = caught.iter().find(|(_, envelope, _)| !here(envelope.from)) {
            let sent = format!("a datagram of {} to {target}", counted(size, "byte"));
            return Err(Finding::new(&sent, &format!("an answer from {}", strange.from)).into());
        }
    }
    if answers == 0 { Err(Trouble::unjudged("nothing came back")) } else { Ok(()) }
}

pub(super) fn sizes(lab: &mut Lab) -> Outcome {
    let port = lab.port(0)?;
    for size in [0, 1, 2, 511, 512, 513, 1024, 1025, 1472, 1473, 4097, 8193, 65_507] {
        let message = lab.message(size);
        same(&message, &ask(lab, port, &message)?)?;
    }
    Ok(())
}

pub(super) fn values(lab: &mut Lab) -> Outcome {
    let port = lab.port(0)?;
    let (all, back): (Vec<u8>, Vec<u8>) = ((0..=255).collect(), (0..=255).rev().collect());
    // What is made of bytes at the beginning and at the end is often something else.
    for bytes in [&all[..], &back, b"\0", b"a\0\0", b" a\r\n", b"\n", b"\xff\xfe\xc3"] {
        same(bytes, &ask(lab, port, bytes)?)?;
    }
    Ok(())
}

pub(super) fn once(lab: &mut Lab) -> Outcome {
    let port = lab.port(0)?;
    let patience = lab.patience;
    let messages: Vec<_> = (0..50).map(|_| lab.message(32)).collect();
    let began = Instant::now();
    for (number, message) in messages.iter().enumerate() {
        if number >= 10 && lab.is_long(began) {
            break;
        }
        lab.post(port, message);
        let mut caught = lab.catch(1, patience / 10)?;
        lab.rest(Duration::from_millis(2))?;
        caught.extend(lab.catch(0, Duration::ZERO)?);
        if let Some((_, _, strange)) = caught.iter().find(|(_, _, answer)| !messages.contains(answer)) {
            same(message, strange)?;
        }
        if caught.iter().filter(|(_, _, answer)| answer == message).count() > 1 {
            let text = message.escape_ascii();
            return Err(Finding::new(&format!("'{text}'"), &format!("'{text}' twice")).into());
        }
    }
    Ok(())
}

pub(super) fn boundaries(lab: &mut Lab) -> Outcome {
    let port = lab.port(0)?;
    let patience = lab.patience;
    let mut answered = 0;
    for _ in 0..TRIES {
        let messages: Vec<_> = (0..20).map(|number| lab.message(10 + 7 * number)).collect();
        messages.iter().for_each(|message| _ = lab.post(port, message));
        let caught = collect(lab, messages.len(), patience / TRIES as u32)?;
        // A slow service may still answer those of the last time.
        if let Some((_, _, strange)) = caught.iter().find(|(_, _, bytes)| !lab.posted.contains(bytes)) {
            let got = format!("an answer of {} that was never sent", counted(strange.len(), "byte"));
            return Err(Finding::new("20 datagrams at once", &got).into());
        }
        answered = answered.max(caught.len());
        if answered >= messages.len() / 2 {
            return Ok(());
        }
    }
    Err(Finding::new("20 datagrams at once", &format!("{answered} answers")).timing().into())
}

pub(super) fn many(lab: &mut Lab) -> Outcome {
    let ports = (0..lab.many.min(50)).map(|_| lab.port(0)).collect::<Result<Vec<_>, _>>()?;
    let began = Instant::now();
    for _ in 0..2 {
        for (number, port) in ports.iter().enumerate() {
            if number >= 5 && lab.is_long(began) {
                break;
            }
            let message = lab.message(24);
            let answer = ask(lab, *port, &message)?;
            same(&message, &answer)?;
        }
    }
    Ok(())
}

pub(super) fn low_port(lab: &mut Lab) -> Outcome {
    let bound = SIMPLE_SERVICES.into_iter().find_map(|port| lab.port(port).ok().map(|token| (port, token)));
    let Some((number, port)) = bound else {
        return Err(Trouble::unjudged("cannot bind a port below 1024 here (ip(7), CAP_NET_BIND_SERVICE)"));
    };
    for _ in 0..2 {
        lab.post(port, b"are you there?");
        if !lab.catch(1, NOTHING)?.is_empty() {
            return Err(Finding::new(&format!("a datagram from port {number}"), "an answer").into());
        }
    }
    Ok(())
}

pub(super) fn loss(lab: &mut Lab) -> Outcome {
    let port = lab.port(0)?;
    let messages: Vec<_> = (0..100).map(|_| lab.message(64)).collect();
    messages.iter().for_each(|message| _ = lab.post(port, message));
    let wait = lab.patience / 2;
    let caught = collect(lab, messages.len(), wait)?.len();
    Err(Trouble::Note(format!("{} of {} sent at once came back", caught.min(messages.len()), messages.len())))
}
