//! The files in deploy/ say what is: their command lines are understood, and those who read such files accept them.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use common::{ECHOLOOP, Server, get};
use echoloop::cli::Cli;

/// As units name it: systemd finds it in /usr/local/bin or /usr/bin.
const INSTALLED: &str = "ExecStart=echoloop ";
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
    for (name, manifest) in KUBERNETES {
        for line in manifest.lines().filter_map(|line| line.trim().strip_prefix("args: ")) {
            lines.push(serde_json::from_str::<Vec<String>>(line).unwrap_or_else(|error| panic!("{name}: {error}")));
        }
    }
    assert_eq!(lines.len(), 4, "two units and two containers");
    for line in lines {
        let line = [vec!["echoloop".to_owned()], line].concat();
        assert!(Cli::try_parse_from(&line).is_ok(), "{line:?}");
    }
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
    let command = Command::new(ECHOLOOP).args(["help", "serve"]).output().unwrap();
    let help = String::from_utf8_lossy(&command.stdout).into_owned();
    let texts = units().into_iter().chain(KUBERNETES.map(|(name, text)| (name.to_owned(), text.to_owned())));
    let mut found = 0;
    for (name, text) in texts {
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

/// What `systemd-analyze verify` says of units in a directory of their own; `None` where it is not installed.
fn verify(units: &[(String, String)]) -> Option<(bool, String)> {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).env("SYSTEMD_UNIT_PATH", format!("{}:", directory.path().display()));
    for (name, unit) in units {
        fs::write(directory.path().join(name), unit.replace(INSTALLED, &format!("ExecStart={ECHOLOOP} "))).unwrap();
        command.arg(directory.path().join(name.replace("@.", "@1.")));
    }
    let output = command.output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Where no systemd runs it says so too, about itself.
    let about: Vec<_> = said.lines().filter(|line| line.contains("echoloop")).collect();
    Some((output.status.success() && about.is_empty(), said))
}

#[test]
fn systemd_takes_the_units() {
    let units = units();
    assert_eq!(units.len(), 4);
    let Some((taken, said)) = verify(&units) else {
        eprintln!("systemd-analyze is not installed");
        return;
    };
    assert!(taken, "{said}");
    let wrong = units.iter().map(|(name, unit)| (name.clone(), unit.replace("WatchdogSec=10s", "WatchdogSec=soon")));
    let (taken, said) = verify(&wrong.collect::<Vec<_>>()).unwrap();
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
fn enabled_units_start_at_boot() {
    let root = root_with_units();
    let mut command = Command::new("systemctl");
    command.arg("--root").arg(root.path()).args(["enable", "echoloop@1", "echoloop@2", "echoloop.socket"]);
    let Ok(output) = command.output() else {
        eprintln!("systemctl is not installed");
        return;
    };
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
fn systemd_finds_little_exposed() {
    let root = root_with_units();
    let bounded = |unit: &str, threshold: u32| {
        let mut command = Command::new("systemd-analyze");
        command.arg("--root").arg(root.path()).args(["security", "--offline=true"]);
        command.arg(format!("--threshold={threshold}")).arg(unit);
        Some(command.output().ok()?.status.success())
    };
    for unit in ["echoloop@1.service", "echoloop-activated.service"] {
        let Some(little) = bounded(unit, 15) else {
            eprintln!("systemd-analyze is not installed");
            return;
        };
        assert!(little, "{unit} is exposed above 1.5 of 10");
        assert_eq!(bounded(unit, 5), Some(false), "a check that cannot fail is none");
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
        let seconds: u32 = value("Service", "RestartSec=").trim_end_matches('s').parse().unwrap();
        assert_eq!(value("Unit", "StartLimitIntervalSec="), "1min");
        assert!(burst * seconds < 60, "{name}: the limit is never reached");
    }
}

#[test]
fn kubernetes_takes_the_manifests() {
    let validate = |path: &Path| {
        let output = Command::new("kubernetes-validate").arg("--strict").arg(path).output().ok()?;
        Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let directory = tempfile::tempdir().unwrap();
    for (name, manifest) in KUBERNETES {
        let Some((taken, said)) = validate(&deploy().join("kubernetes").join(name)) else {
            eprintln!("kubernetes-validate is not installed");
            return;
        };
        assert!(taken, "{said}");
        let path = directory.path().join(name);
        fs::write(&path, manifest.replace("\nspec:", "\nspek:")).unwrap();
        assert!(!validate(&path).unwrap().0, "a check that cannot fail is none");
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
    let mut server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &["--http", "0"]);
    let (_, told) = get(server.inside(), "/metrics");
    let known = metrics_in(&told);
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let mut expressions: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert_eq!(expressions.len(), 8);
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    expressions.extend(targets.map(|target| target["expr"].as_str().unwrap()));
    for expression in expressions {
        let used = metrics_in(expression);
        assert!(used.is_subset(&known) && (!used.is_empty() || expression.starts_with("up{")), "{expression}");
    }
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
