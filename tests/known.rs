//! What services score that are known: the table in `docs/check.md`, made by one command.
//!
//! ```sh
//! ECHOLOOP_UPDATE=1 cargo test --test known -- --ignored
//! ```
//!
//! What is not installed has a row that says so, so the table is best made where everything is.
//!
//! And that honest services are blamed for nothing, however often they are checked on a busy machine (20 rounds take five minutes
//! on two cores):
//!
//! ```sh
//! ROUNDS=20 cargo test --test known -- --ignored --nocapture honest
//! ```

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{ECHOLOOP, Server};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What is asked of Rust's documentation: a program that is built from it.
const BUILT: &str = "BUILT/";

struct Known {
    name: String,
    profile: &'static str,
    /// How it is started, with {port} where its port goes.
    command: String,
    /// What it needs: a program, or a file.
    needs: &'static str,
    datagrams: bool,
}

fn known(name: &str, needs: &'static str, command: &str) -> Known {
    Known { name: name.to_owned(), profile: "", command: command.to_owned(), needs, datagrams: false }
}

impl Known {
    fn profile(self, profile: &'static str) -> Known {
        Known { profile, ..self }
    }

    fn datagrams(self) -> Known {
        Known { datagrams: true, ..self }
    }

    fn is_there(&self, built: &Path) -> bool {
        if let Some(program) = self.needs.strip_prefix(BUILT) {
            return built.join(program).exists();
        }
        if self.needs.starts_with('/') {
            return Path::new(self.needs).exists();
        }
        let found = Command::new("sh").args(["-c", &format!("command -v {}", self.needs)]).output().unwrap();
        !found.stdout.is_empty()
    }

    /// Its row of the table, and how long the check took, and what it used.
    fn row(&self, built: &Path) -> (String, Option<Value>) {
        let (name, profile) = (&self.name, self.profile);
        if !self.is_there(built) {
            let program = self.needs.trim_start_matches(BUILT);
            return (format!("| {name} | {profile} | not judged here: {program} is missing | | |\n"), None);
        }
        let command = self.command.replace(BUILT, &format!("{}/", built.display()));
        let mut args = vec!["check", "--exec", &command, "--json", "-"];
        args.extend(self.datagrams.then_some("udp:127.0.0.1:0"));
        args.extend((!profile.is_empty()).then_some(["--profile", profile]).into_iter().flatten());
        let output = Command::new(ECHOLOOP).args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let report: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{name}: {error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        let of = |verdict: &str| -> Vec<String> {
            let judgements = report["judgements"].as_array().unwrap().iter();
            judgements.filter(|it| it["verdict"] == verdict).map(|it| it["id"].as_str().unwrap().to_owned()).collect()
        };
        let list = |ids: Vec<String>| match &ids[..] {
            [] => "none".to_owned(),
            ids => format!("`{}`", ids.join("`, `")),
        };
        let noted = of("note");
        let noted = if noted.is_empty() { String::new() } else { format!("; noted: {}", list(noted)) };
        let (holds, unjudged) = (of("holds").len(), of("not-judged").len());
        (format!("| {name} | {profile} | {holds} | {}{noted} | {unjudged} |\n", list(of("broken"))), Some(report))
    }
}

fn services(backend: u16) -> Vec<Known> {
    let tutorial = |number: u32| format!("exec python3 {ROOT}/tests/check/tutorial.py {number} {{port}}");
    let bad = |kind: &str| format!("exec python3 {ROOT}/tests/check/bad.py {kind} {{port}}");
    let docs = |kind: &str| format!("exec python3 {ROOT}/tests/check/asyncio_docs.py {kind} {{port}}");
    // A directory of its own for the configuration, which goes when the service does.
    let configured = |configuration: &str, program: &str| {
        format!(
            "directory=$(mktemp -d); trap 'kill $!; wait; rm -r $directory' TERM; cd $directory; \
             printf '{configuration}' > conf; {program} & wait"
        )
    };
    let nginx = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; error_log stderr error; pid nginx.pid; events {{ }} \
         stream {{ server {{ listen 127.0.0.1:{{port}} backlog=511; proxy_pass 127.0.0.1:{backend}; }} }}"
    );
    let haproxy = format!(
        "defaults\\n mode tcp\\n timeout connect 1s\\n timeout client 1m\\n timeout server 1m\\nlisten echo\\n bind \
         127.0.0.1:{{port}}\\n server one 127.0.0.1:{backend}\\n"
    );
    let xinetd = "service echo\\n{\\n type = INTERNAL UNLISTED\\n id = echo-stream\\n socket_type = stream\\n protocol = tcp\\n \
                  port = {port}\\n bind = 127.0.0.1\\n user = root\\n wait = no\\n instances = UNLIMITED\\n cps = 10000 1\\n}\\n";
    let socat = "exec socat TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=128";
    vec![
        known("`echoloop serve`", "sh", &format!("exec {ECHOLOOP} serve -q 127.0.0.1:{{port}}")),
        known("`echoloop serve`, UDP", "sh", &format!("exec {ECHOLOOP} serve -q udp:127.0.0.1:{{port}}")).datagrams(),
        known("the tutorial's first server (Python)", "python3", &tutorial(1)).profile("tutorial-1"),
        known("the tutorial's second server (Python)", "python3", &tutorial(2)).profile("tutorial-2"),
        known("the tutorial's third server (Python)", "python3", &tutorial(3)).profile("tutorial-3"),
        known("the same, all promises", "python3", &tutorial(3)),
        known("one connection after another (Python)", "python3", &bad("sequential")),
        known("a thread for each connection (Python)", "python3", &bad("honest")),
        known("`asyncio`, the example of streams in its documentation", "python3", &docs("streams")),
        known("`asyncio`, the example of protocols in its documentation", "python3", &docs("protocol")),
        known("`asyncio`, the example of datagrams in its documentation", "python3", &docs("udp")).datagrams(),
        known("`asyncio`, `read`, `write` and `drain` in a loop", "python3", &docs("loop")),
        known("`asyncio`, `write` without `drain`", "python3", &bad("unbounded")),
        known("tokio, the example in its README", "BUILT/tokio_readme", "exec BUILT/tokio_readme 127.0.0.1:{port}"),
        known(
            "mio, its example `tcp_server`, which is no echo",
            "BUILT/mio_tcp",
            "exec BUILT/mio_tcp 127.0.0.1:{port}",
        ),
        known("mio, its example `udp_server`", "BUILT/mio_udp", "exec BUILT/mio_udp 127.0.0.1:{port}").datagrams(),
        known(
            "Node, `connection.pipe(connection)`",
            "node",
            "exec node -e \"require('net').createServer(c => c.pipe(c)).listen({port}, '127.0.0.1')\"",
        ),
        known("`socat` with `fork` and `EXEC:cat`", "socat", &format!("{socat} EXEC:cat")),
        known("`socat` with `fork` and `PIPE`", "socat", &format!("{socat} PIPE")),
        known("`ncat -k -e /bin/cat`", "ncat", "exec ncat -l -k -m 1000 127.0.0.1 {port} -e /bin/cat"),
        known("xinetd, its own echo", "xinetd", &configured(xinetd, "xinetd -dontfork -f conf -pidfile pid")),
        known(
            "nginx (`stream`) in front of `echoloop serve`",
            "/usr/lib/nginx/modules/ngx_stream_module.so",
            &configured(&nginx, "nginx -p . -e stderr -c conf"),
        )
        .profile("path"),
        known("HAProxy in front of `echoloop serve`", "haproxy", &configured(&haproxy, "haproxy -q -db -f conf"))
            .profile("path"),
    ]
}

/// Builds the examples of Rust's libraries, from the sources that this package is built with. Without a network, or if
/// they are not what they were, there are none.
fn build_examples() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("known");
    let sources = directory.join("src/bin");
    fs::create_dir_all(&sources).unwrap();
    let cargo = || Command::new(env!("CARGO"));
    let metadata = cargo().args(["metadata", "--locked", "--format-version", "1"]).current_dir(ROOT).output().unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let package = |name: &str| {
        let mut packages = metadata["packages"].as_array().unwrap().iter();
        let found = packages.find(|package| package["name"] == name).unwrap();
        let manifest = Path::new(found["manifest_path"].as_str().unwrap()).to_owned();
        (manifest.parent().unwrap().to_owned(), found["version"].as_str().unwrap().to_owned())
    };
    let ((mio, mio_version), (tokio, tokio_version)) = (package("mio"), package("tokio"));
    // But for the address they stay what they are.
    let with_address = |text: String| {
        let argument = "std::env::args().nth(1).unwrap()";
        text.replace("\"127.0.0.1:9000\"", argument).replace("\"127.0.0.1:8080\"", argument)
    };
    let readme = fs::read_to_string(tokio.join("README.md")).unwrap();
    let example = readme.split("```rust,no_run\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    fs::write(sources.join("tokio_readme.rs"), with_address(example.to_owned())).unwrap();
    for (file, name) in [("tcp_server.rs", "mio_tcp.rs"), ("udp_server.rs", "mio_udp.rs")] {
        let text = fs::read_to_string(mio.join("examples").join(file)).unwrap();
        fs::write(sources.join(name), with_address(text)).unwrap();
    }
    let manifest = format!(
        "[package]\nname = \"known\"\nedition = \"2021\"\n[workspace]\n[dependencies]\nenv_logger = \"*\"\nlog = \"*\"\n\
         mio = {{ version = \"={mio_version}\", features = [\"os-poll\", \"net\"] }}\n\
         tokio = {{ version = \"={tokio_version}\", features = [\"full\"] }}\n"
    );
    fs::write(directory.join("Cargo.toml"), manifest).unwrap();
    let target = directory.join("target");
    let built =
        cargo().args(["build", "-q"]).current_dir(&directory).env("CARGO_TARGET_DIR", &target).status().unwrap();
    if !built.success() {
        println!("the examples cannot be built here");
    }
    target.join("debug")
}

#[test]
#[ignore = "it takes minutes, and what is installed decides what is in it"]
fn known_services_are_in_the_table() {
    let built = build_examples();
    let backend = Server::start(&[]);
    let mut table =
        "\n| service | profile | holds | broken | not judged |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for service in services(backend.addr().port()) {
        let (row, report) = service.row(&built);
        let told = report.map(|report| {
            let seconds = report["seconds"].as_f64().unwrap();
            assert!(seconds < 30.0, "{row}: {seconds} s");
            format!(
                "{seconds:.1} s, {} connections, {} bytes sent, {} received",
                report["connections"], report["sent_bytes"], report["received_bytes"]
            )
        });
        println!("{}{}", row, told.unwrap_or_default());
        table.push_str(&row);
    }
    let path = format!("{ROOT}/docs/check.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- the table begins -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- the table ends -->\n").unwrap();
    if std::env::var_os("ECHOLOOP_UPDATE").is_some() {
        fs::write(path, format!("{before}<!-- the table begins -->\n{table}\n<!-- the table ends -->\n{after}"))
            .unwrap();
    }
}

/// The servers of `benches/peers`.
fn build_peers() -> PathBuf {
    let build = ["build", "-q", "--locked", "--bench", "peers", "--message-format", "json"];
    let output = Command::new(env!("CARGO")).args(build).current_dir(ROOT).output().unwrap();
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let built = messages.map(Result::unwrap).find_map(|message| {
        let is_it = message["target"]["name"] == "peers" && message["executable"].is_string();
        is_it.then(|| PathBuf::from(message["executable"].as_str().unwrap()))
    });
    built.unwrap_or_else(|| panic!("benches/peers cannot be built: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Verdicts in so many checks of a service, each with how often it was given.
fn verdicts(address: &str, command: &str, rounds: u32) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for _ in 0..rounds {
        let mut check = Command::new(ECHOLOOP);
        check.args(["check", "--max-time", "2m", "--json", "-", "--exec", command, address]);
        let output = check.output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let ended = String::from_utf8_lossy(&output.stderr).into_owned();
            serde_json::json!({ "judgements": [], "ended_early": ended })
        });
        for judgement in report["judgements"].as_array().unwrap() {
            // Who may not bind to low ports, or gave no word, is told so each time.
            match judgement["verdict"].as_str().unwrap() {
                "broken" => *found.entry(format!("BROKEN {}", judgement["id"])).or_default() += 1,
                verdict => *found.entry(verdict.to_owned()).or_default() += 1,
            }
        }
        if let Some(why) = report["ended_early"].as_str() {
            *found.entry(format!("BROKEN off: {why}")).or_default() += 1;
        }
    }
    found
}

#[test]
#[ignore = "it takes many minutes on a machine that has nothing else to do"]
fn honest_services_are_never_blamed_when_busy() {
    let rounds = std::env::var("ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let peers = build_peers().display().to_string();
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("socket").display());
    let serve = format!("exec {ECHOLOOP} serve -q");
    let peer = |name: &str, address: &str| format!("exec {peers} serve '{name}' {address}");
    let asyncio = |address: &str| format!("exec python3 {ROOT}/benches/peers/asyncio_server.py {address}");
    let (tcp, udp) = ("127.0.0.1:{port}", "udp:127.0.0.1:{port}");
    let services = [
        ("serve", "127.0.0.1:0", format!("{serve} {tcp}")),
        ("serve, UDP", "udp:127.0.0.1:0", format!("{serve} {udp}")),
        ("serve, Unix", socket.as_str(), format!("{serve} {socket}")),
        ("epoll", "127.0.0.1:0", peer("epoll", tcp)),
        ("epoll, UDP", "udp:127.0.0.1:0", peer("epoll", udp)),
        ("tokio", "127.0.0.1:0", peer("tokio", tcp)),
        ("tokio, threads", "127.0.0.1:0", peer("tokio, threads", tcp)),
        ("monoio", "127.0.0.1:0", peer("monoio", tcp)),
        ("threads", "127.0.0.1:0", peer("threads", tcp)),
        ("asyncio", "127.0.0.1:0", asyncio(tcp)),
        ("asyncio, UDP", "udp:127.0.0.1:0", asyncio(udp)),
    ];
    let over = AtomicBool::new(false);
    let mut blamed = Vec::new();
    thread::scope(|scope| {
        // One more than there are cores, beside the services and those who check them.
        for _ in 0..=thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let each = services
            .iter()
            .map(|(name, address, command)| (*name, scope.spawn(move || verdicts(address, command, rounds))));
        let each: Vec<_> = each.collect();
        let found: Vec<_> = each.into_iter().map(|(name, check)| (name, check.join())).collect();
        over.store(true, Ordering::Relaxed);
        for (name, found) in found {
            let found = found.unwrap();
            println!("{name}: {rounds} checks: {found:?}");
            // Few services look at the sender's port, and none of these but `serve` has promised to. And asyncio sends no empty
            // datagrams before Python 3.12.
            let is_excused = |verdict: &str| {
                verdict.contains("datagrams.low-port") && !name.starts_with("serve")
                    || verdict.contains("datagrams.sizes") && name == "asyncio, UDP"
            };
            let is_blame = |verdict: &&String| verdict.starts_with("BROKEN") && !is_excused(verdict);
            blamed.extend(found.keys().filter(is_blame).map(|verdict| format!("{name}: {verdict}")));
        }
    });
    assert!(blamed.is_empty(), "{blamed:#?}");
}
