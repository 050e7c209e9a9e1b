//! The files in deploy/ say what is: their command lines are understood, and those who read such files accept them.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use clap::Parser;
use common::{ECHOLOOP, Server, get};
use echoloop::bench::Run;
use echoloop::cli::Cli;

/// As units name it: systemd finds it in /usr/local/bin or /usr/bin.
const INSTALLED: &str = "ExecStart=echoloop ";
const CONTAINERFILE: &str = include_str!("../deploy/Containerfile");
const KUBERNETES: [(&str, &str); 3] = [
    ("echoloop.yaml", include_str!("../deploy/kubernetes/echoloop.yaml")),
    ("autoscaler.yaml", include_str!("../deploy/kubernetes/autoscaler.yaml")),
    ("bench.yaml", include_str!("../deploy/kubernetes/bench.yaml")),
];

fn deploy() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy"))
}

/// The units, by their names.
fn units() -> Vec<(String, String)> {
    let files = fs::read_dir(deploy()).unwrap().map(|entry| entry.unwrap().path());
    let units = files
        .filter(|path| ["service", "socket", "target"].iter().any(|it| path.extension().is_some_and(|e| e == *it)));
    units
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn command_lines_are_understood() {
    let mut lines = Vec::new();
    for (name, unit) in units() {
        for line in unit.lines().filter_map(|line| line.strip_prefix("ExecStart=")) {
            let args = line.strip_prefix("echoloop ").unwrap_or_else(|| panic!("{name}: {line}"));
            lines.push(args.split_whitespace().map(str::to_owned).collect());
        }
    }
    lines.extend(KUBERNETES.iter().filter_map(|(_, manifest)| container_args(manifest)));
    lines.extend(json_list(CONTAINERFILE, "CMD "));
    assert_eq!(lines.len(), 5, "two units, two pods' containers, and the image's own");
    for line in lines {
        let line = [vec!["echoloop".to_owned()], line].concat();
        assert!(Cli::try_parse_from(&line).is_ok(), "{line:?}");
    }
}

/// The list that follows these words in a text.
fn json_list(text: &str, words: &str) -> Option<Vec<String>> {
    let list = text.lines().find_map(|line| line.trim().strip_prefix(words))?;
    Some(serde_json::from_str(list).unwrap_or_else(|error| panic!("{list}: {error}")))
}

fn container_args(manifest: &str) -> Option<Vec<String>> {
    json_list(manifest, "args: ")
}

/// The value that a manifest sets a variable to.
fn variable<'a>(manifest: &'a str, name: &str) -> &'a str {
    let mut lines = manifest.lines().skip_while(|line| line.trim() != format!("- name: {name}")).skip(1);
    let value = lines.next().and_then(|line| line.trim().strip_prefix("value: "));
    value.unwrap_or_else(|| panic!("{name} is not set"))
}

#[test]
fn grace_period_covers_delay_and_drain() {
    let text = include_str!("../deploy/kubernetes/echoloop.yaml");
    let period = text.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: ")).unwrap();
    let [delay, drain] =
        ["ECHOLOOP_STOP_DELAY", "ECHOLOOP_DRAIN_TIMEOUT"].map(|name| humantime::parse_duration(variable(text, name)));
    let delay = delay.unwrap();
    // A readiness probe sees it, and all nodes have been told.
    assert!(delay >= Duration::from_secs(5));
    assert!(delay + drain.unwrap() < Duration::from_secs(period.parse().unwrap()));
}

#[test]
fn image_serves_both_families_on_its_ports() {
    let manifest = container_args(include_str!("../deploy/kubernetes/echoloop.yaml")).unwrap();
    assert_eq!(json_list(CONTAINERFILE, "CMD "), Some(manifest.clone()), "the pod and the image do the same");
    for port in ["0.0.0.0:7777", "[::]:7777", "udp:0.0.0.0:7777", "udp:[::]:7777", "0.0.0.0:9090", "[::]:9090"] {
        assert!(manifest.iter().any(|arg| arg == port), "{port}");
    }
    assert!(CONTAINERFILE.contains("\nEXPOSE 7777/tcp 7777/udp 9090/tcp\n"));
    assert!(
        CONTAINERFILE.contains("\nUSER 65534:65534\n"),
        "a number, so that runAsNonRoot can see that it is not root"
    );
}

#[test]
fn image_is_labelled_with_what_cargo_knows() {
    let image = CONTAINERFILE.split("FROM scratch").nth(1).expect("nothing but the program is in it");
    for (label, value) in [
        ("title", env!("CARGO_PKG_NAME")),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ] {
        assert!(image.contains(&format!("org.opencontainers.image.{label}=\"{value}\"")), "{label}");
    }
}

#[test]
fn build_context_is_what_the_image_copies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignore = fs::read_to_string(root.join(".containerignore")).unwrap();
    assert_eq!(fs::read_to_string(root.join(".dockerignore")).unwrap(), ignore);
    let mut lines = ignore.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "what is not asked for stays out: target/ and .git have gigabytes");
    let allowed: BTreeSet<_> = lines.map(|line| line.strip_prefix('!').expect("only more may be let in")).collect();
    let copied = CONTAINERFILE.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from"));
    let copied: BTreeSet<_> = copied
        .flat_map(|line| {
            let words: Vec<_> = line.split_whitespace().skip(1).collect();
            words[..words.len() - 1].to_vec()
        })
        .collect();
    assert_eq!(allowed, copied);
    assert!(copied.iter().all(|name| root.join(name).exists()));
    // Cargo wants the files of the targets that Cargo.toml names, also of those that are not built.
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let benches = manifest.split("[[bench]]").skip(1).map(|section| section.lines().nth(1).unwrap());
    for bench in benches.map(|line| line.split('"').nth(1).unwrap()) {
        assert!(CONTAINERFILE.contains(&format!("benches/{bench}")), "{bench} has no source in the image's build");
    }
}

#[test]
fn monitor_and_autoscaler_are_about_the_deployment() {
    let deployment = include_str!("../deploy/kubernetes/echoloop.yaml");
    let monitor = include_str!("../deploy/kubernetes/podmonitor.yaml");
    let label = "app.kubernetes.io/name: echoloop\n";
    assert!(deployment.contains(&format!("  template:\n    metadata:\n      labels:\n        {label}")));
    assert!(monitor.contains(&format!("  selector:\n    matchLabels:\n      {label}")));
    let port = monitor.lines().find_map(|line| line.trim().strip_prefix("- port: ")).unwrap();
    assert!(deployment.contains(&format!("            - name: {port}\n              containerPort: 9090\n")));
    assert!(monitor.contains("      path: /metrics\n"));
    let autoscaler = include_str!("../deploy/kubernetes/autoscaler.yaml");
    let target = "apiVersion: apps/v1\n    kind: Deployment\n    name: echoloop\n";
    assert!(autoscaler.contains(target), "what it scales");
    assert!(deployment.starts_with("# ") && deployment.contains("\nkind: Deployment\nmetadata:\n  name: echoloop\n"));
}

/// The pods of the bench Job, as processes: they begin together, and their logs become one run.
#[test]
fn job_starts_together_and_its_logs_merge() {
    let manifest = include_str!("../deploy/kubernetes/bench.yaml");
    let pods: usize = ["completions: ", "parallelism: "]
        .map(|key| manifest.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap().parse().unwrap())
        .into_iter()
        .reduce(|completions, parallelism| {
            assert_eq!(completions, parallelism, "all at once");
            completions
        })
        .unwrap();
    let server = Server::start(&[]);
    let mut args = container_args(manifest).unwrap();
    let mut set = |flag: &str, value: &str| {
        let at = args.iter().position(|arg| arg == flag).unwrap_or_else(|| panic!("{flag}"));
        args[at + 1] = value.to_owned();
    };
    set("--connections", "3");
    set("--rate", "200");
    set("--duration", "500ms");
    args[1] = server.addr().to_string();
    let directory = tempfile::tempdir().unwrap();
    let log = |pod: usize| directory.path().join(format!("{pod}.log"));
    let start = SystemTime::now() + Duration::from_secs(1);
    let start_at = humantime::format_rfc3339_millis(start).to_string();
    let running = (0..pods).map(|pod| {
        let out = File::create(log(pod)).unwrap();
        let mut command = Command::new(ECHOLOOP);
        command.args(&args).env("ECHOLOOP_START_AT", &start_at).env("ECHOLOOP_NAME", format!("echoloop-bench-{pod}"));
        command.env("ECHOLOOP_WARM_UP", "0s").stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap()
    });
    for mut pod in running.collect::<Vec<_>>() {
        assert!(pod.wait().unwrap().success());
    }
    let logs: String = (0..pods).map(|pod| fs::read_to_string(log(pod)).unwrap()).collect();
    assert_ne!(logs.lines().next(), Some("{"), "a log has more in it than the run");
    let merged = directory.path().join("merged.json");
    let report = common::echoloop(&["report", "--merge", "-", "--json", merged.to_str().unwrap()], logs.as_bytes());
    assert!(report.status.success(), "{report:?}");
    let run = Run::read(&merged).unwrap();
    assert_eq!((run.merged as usize, run.parts.len()), (pods, pods));
    assert_eq!(run.name, "echoloop-bench-0 + echoloop-bench-1 + echoloop-bench-2");
    let begins = humantime::parse_rfc3339(&run.measured_from).unwrap();
    assert!(begins >= start - Duration::from_millis(1), "nobody began before the time: {}", run.measured_from);
    assert!(run.messages.replies > 0);
}

#[test]
fn images_are_of_this_version() {
    let image = format!("image: echoloop:{}", env!("CARGO_PKG_VERSION"));
    for (name, manifest) in KUBERNETES.into_iter().filter(|(_, text)| text.contains("containers:")) {
        assert!(manifest.contains(&image), "{name}");
    }
}

#[test]
fn variables_are_those_of_options() {
    let [of_serve, of_bench] = ["serve", "bench"].map(|command| {
        let output = Command::new(ECHOLOOP).args(["help", command]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    let texts = units().into_iter().chain(KUBERNETES.map(|(name, text)| (name.to_owned(), text.to_owned())));
    let mut found = 0;
    for (name, text) in texts {
        let help = if name == "bench.yaml" { &of_bench } else { &of_serve };
        for rest in text.split("ECHOLOOP_").skip(1) {
            let variable: String = rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            let option = format!("--{} ", variable.to_lowercase().replace('_', "-"));
            assert!(help.contains(&option), "{name}: {option}");
            found += 1;
        }
    }
    assert!(found >= 4);
}

#[test]
fn probes_ask_the_event_loop_itself() {
    let text = include_str!("../deploy/kubernetes/echoloop.yaml");
    let paths: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("path: ")).collect();
    assert_eq!(paths, ["/readyz", "/livez"], "the kernel accepts for a process that hangs: no tcpSocket");
    assert!(!text.contains("tcpSocket:"));
}

/// What `systemd-analyze verify` says of units in a directory of their own.
fn verify(units: &[(String, String)]) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).env("SYSTEMD_UNIT_PATH", format!("{}:", directory.path().display()));
    for (name, unit) in units {
        fs::write(directory.path().join(name), unit.replace(INSTALLED, &format!("ExecStart={ECHOLOOP} "))).unwrap();
        command.arg(directory.path().join(name.replace("@.", "@1.")));
    }
    let output = command.output().expect("systemd-analyze is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Where no systemd runs it says so too, about itself.
    let about: Vec<_> = said.lines().filter(|line| line.contains("echoloop")).collect();
    (output.status.success() && about.is_empty(), said)
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_takes_the_units() {
    let units = units();
    assert_eq!(units.len(), 4);
    let (taken, said) = verify(&units);
    assert!(taken, "{said}");
    let wrong = units.iter().map(|(name, unit)| (name.clone(), unit.replace("WatchdogSec=10s", "WatchdogSec=soon")));
    let (taken, said) = verify(&wrong.collect::<Vec<_>>());
    assert!(!taken, "a check that cannot fail is none: {said}");
}

/// A system's root directory with the units in it.
fn root_with_units() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("etc/systemd/system");
    fs::create_dir_all(&directory).unwrap();
    for (name, unit) in units() {
        fs::write(directory.join(name), unit).unwrap();
    }
    root
}

#[test]
#[ignore = "needs systemctl"]
fn enabled_units_start_at_boot() {
    let root = root_with_units();
    let mut command = Command::new("systemctl");
    command.arg("--root").arg(root.path()).args(["enable", "echoloop@1", "echoloop@2", "echoloop.socket"]);
    let output = command.output().expect("systemctl is installed");
    assert!(output.status.success(), "{output:?}");
    for wanted in [
        "multi-user.target.wants/echoloop@1.service",
        "multi-user.target.wants/echoloop@2.service",
        "sockets.target.wants/echoloop.socket",
    ] {
        let link = root.path().join("etc/systemd/system").join(wanted);
        assert!(link.is_symlink(), "{wanted}");
    }
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_finds_little_exposed() {
    let root = root_with_units();
    let bounded = |unit: &str, threshold: u32| {
        let mut command = Command::new("systemd-analyze");
        command.arg("--root").arg(root.path()).args(["security", "--offline=true"]);
        command.arg(format!("--threshold={threshold}")).arg(unit);
        command.output().expect("systemd-analyze is installed").status.success()
    };
    for unit in ["echoloop@1.service", "echoloop-activated.service"] {
        assert!(bounded(unit, 15), "{unit} is exposed above 1.5 of 10");
        assert!(!bounded(unit, 5), "a check that cannot fail is none");
    }
}

/// The assignments of a unit's section.
fn section<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let lines = unit.lines().skip_while(|line| *line != format!("[{name}]")).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.contains('=') && !line.starts_with('#'))
        .collect()
}

#[test]
fn services_differ_in_command_and_file_alone() {
    let (template, activated) =
        (include_str!("../deploy/echoloop@.service"), include_str!("../deploy/echoloop-activated.service"));
    let differs =
        |line: &&str| !line.starts_with("ExecStart=") && !line.starts_with("EnvironmentFile=-/etc/default/echoloop-");
    let rest = |unit| section(unit, "Service").into_iter().filter(differs).collect::<Vec<_>>();
    assert_eq!(rest(template), rest(activated));
    assert!(rest(template).contains(&"SuccessExitStatus=143"));
}

#[test]
fn instances_have_files_of_their_own() {
    let files: Vec<_> = section(include_str!("../deploy/echoloop@.service"), "Service")
        .into_iter()
        .filter_map(|line| line.strip_prefix("EnvironmentFile="))
        .collect();
    assert_eq!(files, ["-/etc/default/echoloop", "-/etc/default/echoloop-%i"], "what comes later wins");
}

#[test]
fn services_that_keep_failing_are_given_up() {
    for (name, unit) in units().into_iter().filter(|(name, _)| name.ends_with(".service")) {
        let value = |section_name, key: &str| {
            let found = section(&unit, section_name).into_iter().find_map(|line| line.strip_prefix(key));
            found.unwrap_or_else(|| panic!("{name}: {key}")).to_owned()
        };
        let burst: u32 = value("Unit", "StartLimitBurst=").parse().unwrap();
        let duration = |section, key| humantime::parse_duration(&value(section, key)).unwrap();
        // One that hangs each time is seen by the watchdog, and then does not end by itself either.
        let hangs = ["WatchdogSec=", "TimeoutStopSec=", "RestartSec="].map(|key| duration("Service", key));
        let interval = duration("Unit", "StartLimitIntervalSec=");
        assert!(burst * hangs.iter().sum::<Duration>() < interval, "{name}: the limit is never reached");
    }
}

#[test]
#[ignore = "needs kubernetes-validate"]
fn kubernetes_takes_the_manifests() {
    let validate = |path: &Path| {
        let mut command = Command::new("kubernetes-validate");
        let output = command.arg("--strict").arg(path).output().expect("kubernetes-validate is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let directory = tempfile::tempdir().unwrap();
    for (name, manifest) in KUBERNETES {
        let (taken, said) = validate(&deploy().join("kubernetes").join(name));
        assert!(taken, "{said}");
        let path = directory.path().join(name);
        fs::write(&path, manifest.replace("\nspec:", "\nspek:")).unwrap();
        assert!(!validate(&path).0, "a check that cannot fail is none");
    }
}

/// The words in a text that may be names of metrics: those with one of these beginnings.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
    let ours = |word: &&str| ["echoloop_", "process_"].iter().any(|it| word.starts_with(it));
    words.filter(ours).map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() {
    let rules = include_str!("../deploy/prometheus/echoloop-rules.yaml");
    let dashboard = include_str!("../deploy/grafana/echoloop.json");
    let flags = ["--http", "0", "--print", "--fault", "delay=1ms"];
    let mut server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &flags);
    let (_, told) = get(server.inside(), "/metrics");
    let known = metrics_in(&told);
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let mut expressions: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert_eq!(expressions.len(), 15);
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    expressions.extend(targets.map(|target| target["expr"].as_str().unwrap()));
    let mut shown = BTreeSet::new();
    for expression in expressions {
        let used = metrics_in(expression);
        assert!(used.is_subset(&known) && (!used.is_empty() || expression.starts_with("up{")), "{expression}");
        shown.extend(used);
    }
    let others = [
        "echoloop_asleep_seconds_total", // the rest of awake
        "echoloop_build_info",           // names the instances
        "echoloop_datagrams_received_bytes_total",
        "echoloop_datagrams_sent_bytes_total",
        "echoloop_events_total",
        "echoloop_peak",
        "process_start_time_seconds", // up
        "process_virtual_memory_bytes",
    ];
    let named = told.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let is_shown = |name: &&str| shown.iter().any(|it| it == name || it.starts_with(&format!("{name}_")));
    let unseen: Vec<_> = named.filter(|name| !is_shown(name)).collect();
    assert_eq!(unseen.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from(others), "on the dashboard");
}

#[test]
#[ignore = "needs promtool"]
fn prometheus_takes_the_alerts() {
    let check = |path: &Path| Command::new("promtool").args(["check", "rules"]).arg(path).output().unwrap();
    let rules = deploy().join("prometheus/echoloop-rules.yaml");
    let taken = check(&rules);
    assert!(taken.status.success(), "{taken:?}");
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("rules.yaml");
    fs::write(&wrong, fs::read_to_string(&rules).unwrap().replace("rate(", "rat(")).unwrap();
    assert!(!check(&wrong).status.success(), "a check that cannot fail is none");
}
