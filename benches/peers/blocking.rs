//! The tutorial's servers: blocking sockets, one connection at a time or each with a thread.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::thread;

use crate::listening::Listening;

/// A thread for each connection. Datagrams need no more than one.
pub fn threads(listening: Listening) -> io::Result<Infallible> {
    let spawn = |socket| thread::Builder::new().stack_size(64 * 1024).spawn(move || echo(socket)).map(|_| ());
    each(listening, spawn, |socket| {
        thread::Builder::new().stack_size(64 * 1024).spawn(move || echo(socket)).map(|_| ())
    })
}

/// One connection after the other.
pub fn sequential(listening: Listening) -> io::Result<Infallible> {
    each(listening, |socket| Ok(_ = echo(socket)), |socket| Ok(_ = echo(socket)))
}

fn each(
    listening: Listening,
    tcp: impl Fn(std::net::TcpStream) -> io::Result<()>,
    unix: impl Fn(std::os::unix::net::UnixStream) -> io::Result<()>,
) -> io::Result<Infallible> {
    match listening {
        Listening::Tcp(listener) => loop {
            tcp(listener.accept()?.0)?;
        },
        Listening::Unix(listener) => loop {
            unix(listener.accept()?.0)?;
        },
        Listening::Udp(socket) => {
            let mut buffer = [0; 64 * 1024];
            loop {
                let (count, from) = socket.recv_from(&mut buffer)?;
                let _ = socket.send_to(&buffer[..count], from);
            }
        }
    }
}

fn echo(mut socket: impl Read + Write) -> io::Result<()> {
    let mut buffer = [0; 8 * 1024];
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        socket.write_all(&buffer[..count])?;
    }
}
