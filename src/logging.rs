//! The log: `simple_logger` on standard error, and what must not stop the program when standard error is gone.

use std::io::{IsTerminal, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

/// Sets up the log. `verbosity` is 0 for the usual, more for more and -1 for warnings and errors alone.
pub fn init(verbosity: i16) {
    let level = match verbosity {
        i16::MIN..=-1 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    // mio narrates its registrations at trace; the loop's own story is easier to follow without.
    let inner = SimpleLogger::new().with_level(level).with_module_level("mio", LevelFilter::Info);
    let inner = inner.with_colors(stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()));
    if log::set_boxed_logger(Box::new(Guarded(inner))).is_ok() {
        log::set_max_level(level);
    }
}

/// A log that ends when standard error does. `simple_logger` writes with `eprintln!`, which panics on a closed pipe;
/// a server must survive `echoloop serve 2>&1 | head`.
struct Guarded(SimpleLogger);

impl Log for Guarded {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if catch_unwind(AssertUnwindSafe(|| self.0.log(record))).is_err() {
            log::set_max_level(LevelFilter::Off);
        }
    }

    fn flush(&self) {}
}
