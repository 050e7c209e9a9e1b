//! The tutorial's servers: blocking sockets, one connection at a time or each with a thread.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// A thread for each connection.
pub fn threads(listener: TcpListener) -> io::Result<()> {
    for socket in listener.incoming() {
        let socket = socket?;
        thread::Builder::new().stack_size(64 * 1024).spawn(move || echo(socket))?;
    }
    Ok(())
}

/// One connection after the other.
pub fn sequential(listener: TcpListener) -> io::Result<()> {
    for socket in listener.incoming() {
        let _ = echo(socket?);
    }
    Ok(())
}

fn echo(mut socket: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 8 * 1024];
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        socket.write_all(&buffer[..count])?;
    }
}
