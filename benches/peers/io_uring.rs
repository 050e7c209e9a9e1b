//! io_uring through monoio: a task with a buffer of its own for each connection, which the kernel fills.

use std::io;
use std::net::TcpListener;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};

pub fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().with_entries(4096).build()?;
    runtime.block_on(async {
        let listener = monoio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut socket, _) = listener.accept().await?;
            monoio::spawn(async move {
                let mut buffer = Vec::with_capacity(8 * 1024);
                loop {
                    let (received, filled) = socket.read(buffer).await;
                    if !matches!(received, Ok(1..)) {
                        break;
                    }
                    let (sent, taken) = socket.write_all(filled).await;
                    if sent.is_err() {
                        break;
                    }
                    buffer = taken;
                    buffer.clear();
                }
            });
        }
    })
}
