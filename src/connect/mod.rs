//! The line client: lines from standard input go out, what comes back is printed as it arrives.
//!
//! It is one more protocol on the reactor. Whatever may block has a thread of its own that wakes the poll: [`input`]
//! reads standard input, [`screen`] writes standard output, and names are looked up in a third. So the loop notices a
//! signal, a timeout or the peer's end whatever the others do, and memory stays constant however much passes through.
//!
//! A connection is got by [`race`]; [`client`] is the conversation over it. Over UDP there is no stream, and a line is
//! a datagram: that client is in [`datagrams`]. [`console`] is what both have around them.

#![allow(rustdoc::private_intra_doc_links, reason = "the tour of a module that is read as a whole")]

mod client;
mod config;
mod console;
mod datagrams;
mod echoed;
mod input;
mod line;
mod race;
mod screen;

use std::io::ErrorKind;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use log::debug;
use mio::Token;

use crate::reactor::Poller;
use crate::reactor::address::Endpoint;
use crate::reactor::socket::Socket;
use crate::{escape, limits};
use client::Client;
use console::{Console, Stopped};
use input::wake;
use race::Race;
use screen::OutputError;

pub use config::Config;

const PROMPT: &str = "> ";

/// How the client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything has been sent and has come back, or the reader has seen enough.
    Finished,
    /// This signal has ended it.
    Signal(i32),
}

/// Connects, and runs until everything has been sent and has come back, or the peer closes.
///
/// # Errors
///
/// If there is no connection to be had, if it ends before everything has come back, if a reply is late, or if standard
/// input or output fail. A reader of standard output that has seen enough (a closed pipe) is no error.
pub fn run(config: &Config) -> anyhow::Result<Ending> {
    let mut console = Console::open(config)?;
    match converse(config, &mut console) {
        Ok(()) => Ok(Ending::Finished),
        Err(error) => {
            if let Some(&Stopped(signal)) = error.downcast_ref() {
                console.flush_briefly();
                return Ok(Ending::Signal(signal));
            }
            match error.downcast_ref() {
                Some(OutputError(cause)) if cause.kind() == ErrorKind::BrokenPipe => Ok(Ending::Finished),
                Some(OutputError(_)) => Err(error),
                None => {
                    console.flush_briefly();
                    Err(error)
                }
            }
        }
    }
}

fn converse(config: &Config, console: &mut Console) -> anyhow::Result<()> {
    let began = Instant::now();
    let endpoints = resolve(config, console, began)?;
    let address = |endpoint: &Endpoint| match endpoint {
        Endpoint::Udp(address) => Some(*address),
        _ => None,
    };
    if let Some(addresses) = endpoints.iter().map(address).collect() {
        return datagrams::run(config, console, addresses);
    }
    let (endpoint, mut socket) = connect(config, console, endpoints, began)?;
    debug!("connected to {endpoint} after {:?}", began.elapsed());
    if console.interactive {
        console.screen.say(&format!("connected to {}\n", whom(config, &endpoint)));
    }
    let mut client = Client::start(config, console.interactive, |token| {
        console.registry().reregister(&mut socket, token, Poller::interest())?;
        Ok(socket)
    })?;
    let input = console.input(config)?;
    client.run(console, input)
}

/// Looks the address up, on a thread of its own: the resolver may take its time.
fn resolve(config: &Config, console: &mut Console, began: Instant) -> anyhow::Result<Vec<Endpoint>> {
    let (sender, found) = sync_channel(1);
    let (address, waker) = (config.address.clone(), console.waker());
    limits::start_thread("resolver", move || {
        let _ = sender.send(address.resolve());
        wake(&waker);
    })?;
    let mut now = began;
    loop {
        match found.try_recv() {
            Ok(Ok(endpoints)) => {
                endpoints.iter().for_each(|endpoint| debug!("{} is {endpoint}", config.address));
                return Ok(endpoints);
            }
            Ok(Err(error)) => return Err(error).with_context(|| format!("cannot resolve {}", config.address)),
            Err(TryRecvError::Empty) if now < began + config.connect_timeout => {}
            Err(TryRecvError::Empty) => {
                let timeout = humantime::format_duration(config.connect_timeout);
                bail!("cannot resolve {}: no answer within {timeout}", config.address);
            }
            Err(TryRecvError::Disconnected) => bail!("cannot resolve {}: the resolver failed", config.address),
        }
        now = console.wait(Some((began + config.connect_timeout).saturating_duration_since(now)))?;
    }
}

/// A connection to the first of the endpoints that accepts one.
fn connect(
    config: &Config,
    console: &mut Console,
    endpoints: Vec<Endpoint>,
    began: Instant,
) -> anyhow::Result<(Endpoint, Socket)> {
    let mut race = Race::new(endpoints, began, config.connect_timeout);
    let mut now = Instant::now();
    loop {
        let dial = |endpoint: &Endpoint, token: Token| {
            debug!("connecting to {endpoint}");
            let mut socket = match endpoint {
                Endpoint::Unix(path) => Socket::connect_unix(path)?,
                Endpoint::Tcp(address) | Endpoint::Udp(address) => Socket::connect_tcp(*address, None)?,
            };
            console.registry().register(&mut socket, token, Poller::interest())?;
            Ok(socket)
        };
        match race.turn(now, dial) {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(failures)) => return Err(failures.explain(&config.address)),
            None => now = console.wait(Some(race.sleep(now)))?,
        }
    }
}

/// What a user at a terminal is told: whom the lines go to, by name and by number, and how to end.
fn whom(config: &Config, endpoint: &Endpoint) -> String {
    let (name, number) = (config.address.to_string(), endpoint.to_string());
    let number = if number == name { String::new() } else { format!(" ({number})") };
    let word = config.terminator.as_ref().map_or(String::new(), |word| format!("the line {word} or "));
    escape::text(&format!("{name}{number}; {word}Ctrl-D ends")).to_string()
}

/// What an end means that all would be well with, but for a text that was expected and did not come.
fn unexpected(config: &Config) -> anyhow::Result<()> {
    config.expect.as_ref().map_or(Ok(()), |text| Err(anyhow!("{text:?} did not come back from {}", config.address)))
}
