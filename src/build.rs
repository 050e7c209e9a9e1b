//! What this program was built from, as `build.rs` found it out.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of echoloop.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, by its first digits; `None` outside a checkout of its repository.
pub const COMMIT: Option<&str> = option_env!("BUILT_FROM_COMMIT");

const TARGET: Option<&str> = option_env!("BUILT_FROM_TARGET");
const RUSTC: Option<&str> = option_env!("BUILT_FROM_RUSTC");

/// What a program was built from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Build {
    /// The commit, by its first digits; null if it was not built from a checkout.
    pub commit: Option<String>,
    /// The target, as rustc names it.
    pub target: Option<String>,
    /// The compiler, as `rustc --version` tells it.
    pub rustc: Option<String>,
}

impl Build {
    /// That of this program.
    pub fn this() -> Self {
        let [commit, target, rustc] = [COMMIT, TARGET, RUSTC].map(|text| text.map(str::to_owned));
        Build { commit, target, rustc }
    }
}

/// What `--version` says after the name: the version in the first line, and what is known beside it in further ones.
pub fn long_version() -> String {
    let mut text = VERSION.to_owned();
    for (what, value) in [("commit", COMMIT), ("target", TARGET), ("compiler", RUSTC)] {
        if let Some(value) = value {
            let _ = write!(text, "\n{what}: {value}");
        }
    }
    text
}
