//! What came of an experiment.

/// Why waiting came to an end before what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// A signal asks for the end.
    Signal(i32),
    /// The time for the whole check is over.
    Time,
}

/// What a check uses at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub connections: u64,
    /// Bytes each way.
    pub bytes: u64,
}

/// What was sent, and what came instead of the echo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub sent: String,
    pub got: String,
    /// What causes that, if it is known better than the catalogue does.
    pub cause: Option<&'static str>,
    /// It is about time, so that a busy machine may be the cause: it is only told if it is so again.
    pub timing: bool,
}

impl Finding {
    pub fn new(sent: &str, got: &str) -> Self {
        Finding { sent: sent.to_owned(), got: got.to_owned(), cause: None, timing: false }
    }

    pub fn timing(mut self) -> Self {
        self.timing = true;
        self
    }
}

/// Why an experiment ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The promise is broken.
    Broken(Finding),
    /// It cannot be judged here, and why.
    Unjudged(String),
    /// Something worth telling, and no failure.
    Note(String),
    /// The whole check ends.
    Stop(Stop),
}

impl Trouble {
    pub fn unjudged(why: &str) -> Self {
        Trouble::Unjudged(why.to_owned())
    }
}

impl From<Finding> for Trouble {
    fn from(finding: Finding) -> Self {
        Trouble::Broken(finding)
    }
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        Trouble::Stop(stop)
    }
}

/// What an experiment returns: the promise holds, or not.
pub(super) type Outcome = Result<(), Trouble>;
