//! Tokio, as its users write it: a current-thread runtime, and a task with a buffer of its own for each connection.

use std::io;
use std::net::TcpListener;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub fn serve(listener: TcpListener, buffer: usize) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut socket, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut buffer = vec![0; buffer];
                while let Ok(count @ 1..) = socket.read(&mut buffer).await {
                    if socket.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}
